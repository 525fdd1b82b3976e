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
