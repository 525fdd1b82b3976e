# Thin: everything is done by Meson and by the scripts in tools/ and tests/.
BUILD  ?= build
PREFIX ?= /usr/local

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	meson setup --prefix=$(PREFIX) $(BUILD)

# Packages, build, guest kernels; does nothing (and needs no network) when all is there.
setup:
	tools/setup-packages
	$(MAKE) all
	tools/setup-kernels $(BUILD)/umbra

run: setup
	$(BUILD)/umbra run -- uname -a

test: setup
	tests/run $(BUILD)

bench: setup
	bench/run $(BUILD)

fuzz: setup
	tests/fuzz/run $(BUILD)

install: all
	meson configure $(BUILD) --prefix=$(PREFIX)
	DESTDIR=$(DESTDIR) meson install -C $(BUILD)

lint: $(BUILD)/build.ninja
	tools/lint $(BUILD)

clean:
	rm -rf $(BUILD)

.PHONY: all setup run test bench fuzz install lint clean
