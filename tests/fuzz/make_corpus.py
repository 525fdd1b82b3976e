#!/usr/bin/env python3
"""Writes the seed inputs in corpus/: the smallest valid file of every format."""
import gzip, lzma, os, struct, subprocess

here = os.path.dirname(os.path.abspath(__file__))


def elf64(paddr, vaddr, text, notes=b""):
    head = 64 + 3 * 56
    off = 0x200
    e = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, paddr, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    p = struct.pack("<IIQQQQQQ", 1, 5, off, vaddr, paddr, len(text), 0x3000, 0x1000)
    p += struct.pack("<IIQQQQQQ", 1, 6, off, vaddr + 0x4000, paddr + 0x4000, 64, 64, 0x1000)
    p += struct.pack("<IIQQQQQQ", 4, 4, head, 0, 0, len(notes), len(notes), 4)
    return (e + p + notes).ljust(off, b"\0") + text


def elf32(paddr, text):
    off = 0x80
    e = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, paddr, 52, 0, 0, 52, 32, 1, 40, 0, 0)
    return (e + struct.pack("<IIIIIIII", 1, off, paddr, paddr, len(text), 0x1000, 7, 4)).ljust(off, b"\0") + text


def bzimage(payload):
    h = bytearray(0x400)
    h[0x1f1] = 1
    struct.pack_into("<H", h, 0x1fe, 0xaa55)
    h[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", h, 0x206, 0x20f)
    struct.pack_into("<H", h, 0x20e, 0x180)
    struct.pack_into("<H", h, 0x236, 1)
    struct.pack_into("<II", h, 0x248, 0, len(payload))
    h[0x380:0x387] = b"6.1-fuz"
    return bytes(h) + payload


def save(folder, name, data):
    path = os.path.join(here, "corpus", folder)
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), "wb") as f:
        f.write(data)


linux = elf64(0x1000000, 0xffffffff81000000, b"Linux version 6.1".ljust(0x100, b"\x90"))
relocs = struct.pack("<7I", 0, 0x81000010, 0, 0x81000020, 0, 0x81000030, 0x81000040)
size = struct.pack("<I", len(linux))
save("image", "elf", linux)
save("image", "gzip", bzimage(gzip.compress(linux, mtime=0)))
save("image", "xz", bzimage(lzma.compress(linux, check=lzma.CHECK_CRC32) + size))
save("image", "none", bzimage(linux))
for name, cmd in (("zstd", ["zstd", "-c"]), ("lz4", ["lz4", "-l", "-c"])):
    try:
        save("image", name, bzimage(subprocess.run(cmd, input=linux, capture_output=True, check=True).stdout + size))
    except FileNotFoundError:
        print(name, "is not installed: its seed stays as it is")

note = struct.pack("<III4sI", 4, 4, 18, b"Xen\0", 0x100000)
multiboot = struct.pack("<III", 0x1badb002, 3, -(0x1badb002 + 3) & 0xffffffff)
flat = struct.pack("<8I", 0x1badb002, 0x10000, -(0x1badb002 + 0x10000) & 0xffffffff, 0x200000, 0x200000, 0, 0x201000, 0x200020)
save("boot", "linux", b"\x01" + linux)
save("boot", "kaslr", b"\x04" + linux + relocs)
save("boot", "pvh", b"\x02" + elf64(0x100000, 0x100000, b"\xf4" * 64, note))
save("boot", "multiboot64", b"\x03" + elf64(0x100000, 0x100000, multiboot.ljust(64, b"\xf4")))
save("boot", "multiboot32", b"\x00" + elf32(0x100000, multiboot.ljust(64, b"\xf4")))
save("boot", "flat", b"\x00" + flat.ljust(256, b"\xf4"))


# fuzz_agent: pieces of conversation
def agent_frame(kind, stream, body):
    return bytes([6 | len(body) << 3, kind, stream]) + body


def agent_bytes(data):
    return b"".join(bytes([len(data[i:i + 31]) << 3]) + data[i:i + 31] for i in range(0, len(data), 31))


HELLO, EXITED, ERROR, DATA, CREDIT = 1, 2, 3, 16, 17
hello = agent_frame(HELLO, 0, struct.pack("<II", 0x41524d55, 1))
output = agent_frame(DATA, 1, b"to stdout\n") + agent_frame(DATA, 2, b"to stderr\n")
credit = agent_frame(CREDIT, 3, struct.pack("<I", 100)) + agent_frame(CREDIT, 0, struct.pack("<I", 5))
stdin = b"".join(bytes([3 | len(w) << 3]) + w for w in (b"one line\n", b"two\x03"))
control = b"\x0c\x0f\x04\x18\x50"
exited = agent_frame(EXITED, 0, struct.pack("<I", 7))
for settings in (2, 3, 0x0e, 0x22, 0x33, 0x42):
    save("agent", f"session{settings:02x}", bytes([settings]) + hello + output + stdin + control + credit + b"\x1d" + output + exited)
save("agent", "unnumbered", b"\x02" + agent_bytes(struct.pack("<BBBBIII", 0xa7, HELLO, 0, 0, 8, 0x41524d55, 1) +
     struct.pack("<BBBBI", 0xa7, DATA, 1, 1, 3) + b"abc" + struct.pack("<BBBBII", 0xa7, EXITED, 0, 2, 4, 1)))
save("agent", "error", b"\x02" + hello + agent_frame(ERROR, 0, struct.pack("<I", 127) + b"nosuch: not found"))
save("agent", "much", b"\x22" + hello + b"\xf9\xff\xf1\xff\x1d" * 20 + exited)
words = b"Kernel panic - not syncing: Attempted to kill init!\r\nmore"
console = b"".join(bytes([2 | len(words[i:i + 31]) << 3]) + words[i:i + 31] for i in range(0, len(words), 31))
save("agent", "panic", b"\x08" + console + b"\x27")
save("agent", "console", b"\x07" + console + stdin + b"\x1b\x1d")
save("agent", "early", b"\x03" + stdin[:10] + control + hello + b"\x0f\x17" + output)

# fuzz_cli: command lines
bz = b"\0" * 0x202 + b"HdrS" + b"\0\0" * 4 + bytes([0x10, 0]) + b"6.1.0-fuzz (who)\0"
for i, (line, content) in enumerate((
        ("-- uname -a", bz),
        ("--kernel k --memory 256M --cpus 1 --append|quiet nokaslr --env A=b -e PATH --workdir /etc --hostname h -ti sh -c|exit 3", bz),
        ("--kernel k --modules /m --root / --name n --stats -v -v --engine translate --translate-after 5 --block-limit 64 ls", bz),
        ("--console --initrd i --tty=no --stdin=yes", bz),
        ("--deterministic=0x5 --stop-at 1000 --checkpoints f,100,5 --trace all --trace-file t true", bz),
        ("--trace exc,interrupt,timer -m 0x10M", b""),
        ("--initrd i -it --stdin=no -w / cmd", bz),
        ("--append x", b"\x7fELF not Linux"),
        ("--kernel=k --verbose --deterministic -- cat", b"\x7fELF Linux version "),
        ("--nosuch", b""), ("--memory", b""), ("-h", b""), ("--engine kvm", b""), ("--tty=maybe", b""))):
    save("cli", f"line{i:02}", b"".join(w.replace("|", " ").encode() + b"\0" for w in line.split()) + b"\xff\xff" + content)

# fuzz_msg: messages of roles
def said(of_session, index, body=b"\0", more=0):
    return bytes([index | (0x10 if of_session else 0) | more, len(body)]) + body


one = struct.pack("<II", 1, 0)
report = b"\xff" + struct.pack("<QII", 0x54524f5045524d55, 20, 1) + b"triple fault".ljust(512, b"\0") + b"rip 0000\nend of it\x1b\n"
save("msg", "good", b"\0" + said(0, 0, b"") + said(0, 3, struct.pack("<I", 2) + b"line\0") + said(1, 0, b"") + said(1, 1, b"\x07\0\0\0\0") +
     said(0, 1, one + b"instructions".ljust(32, b"\0") + b"\x05\0") + said(0, 2, one + b"off\0"))
save("msg", "console", b"\x01" + said(0, 2, struct.pack("<II", 3, 33) + b"\0"))
save("msg", "stats", b"\0" + said(0, 1, b"\xff\xff\xff\xff\0\0\0\0" + b"a" * 200))
save("msg", "failed", b"\0" + said(1, 2, b"\x05tail\r\n\x1b") + said(1, 3, b"the guest kernel panicked: x\0") + report)
save("msg", "died", b"\0" + said(0, 2, struct.pack("<II", 4, 0) + b"\x1b[31m\xff") + report)
save("msg", "setup", b"\0" + said(0, 4, struct.pack("<i", 22) + b"no room\0") + said(1, 5, b"\1\0\0\0\x07"))
save("msg", "late", b"\0" + said(1, 1, b"\x07\0\0\0\0") + said(0, 0, b"x", 0x40) + report)  # a status is there, then the vm breaks
save("msg", "status", b"\0" + said(1, 1, b"\0\1\0\0\0") + said(1, 4, b"\x63" * 200))
save("msg", "bad", b"\x02" + said(0, 0, b"x", 0x40) + said(1, 0, b"", 0x80) + said(0, 0, b"BUMBraw", 0x20) + report)
save("msg", "fds", b"\0" + b"".join(said(0, 0, bytes(x), 0xa0) for x in ((1, 2, 8, 0, 0, 1), (2, 1, 4, 0, 2), (3, 12, 9, 0, *range(12)),
     (3, 20, 9, 0, *range(20)), (1, 2, 8, 1, 1, 0), (1, 2, 8, 2, 0, 1))))
