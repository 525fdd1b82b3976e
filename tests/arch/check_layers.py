#!/usr/bin/env python3
"""Checks the architecture's rules that a compiler does not.

 layers: dependencies between the folders of src/ point one way (doc/design.md).
 cpu:    objects of src/cpu and src/engine/rt use no vector register, no TLS, and call nothing outside but what is
         allowed: the guest's vector state is live in the host's registers while they run.

usage: check_layers.py SRC LIBCPU LIBENGINE_RT
"""
import os, re, subprocess, sys

ALLOWED = {
    'core': set(),
    'cpu': {'core'},
    'vcpu': {'core'},
    'engine': {'cpu', 'vcpu', 'core'},
    'machine': {'vcpu', 'core', 'cpu'},
    'super': {'core', 'roles', 'machine', 'vcpu'},
    'roles': {'core', 'super', 'machine', 'engine', 'vcpu', 'cpu', 'session'},
    'session': {'core', 'super', 'roles'},
    'cli': {'super', 'core', 'roles', 'session', 'machine', 'vcpu', 'cpu'},
}
# What the CPU may use of machine: its local APIC's interface only.
MACHINE_CPU_HEADERS = {'cpu/msr.h', 'cpu/x86.h'}

# Called with the FPU saved, or harmless: the decoder library, the assertion.
CPU_EXTERNAL = re.compile(r'^(Zydis|assert_failed$|_GLOBAL_OFFSET_TABLE_$)')
# Called by src/engine/rt: src/cpu, and the translator once the FPU is saved.
RT_EXTERNAL = re.compile(r'^(translate_block|_GLOBAL_OFFSET_TABLE_)$')  # which rt_hot calls with the FPU saved
# Files that move vector state on purpose.
CPU_VECTOR_FILES = {'fpu.c', 'native.c', 'native_exec.c', 'native_gather.c', 'fpu_exec.c', 'native_fault.c', 'native_encode.c'}


def check_layers(src):
    bad = []
    for root, _, files in os.walk(src):
        layer = os.path.relpath(root, src).split(os.sep)[0]
        if layer == '.':
            continue
        for f in files:
            if not f.endswith(('.c', '.h')):
                continue
            path = os.path.join(root, f)
            for n, line in enumerate(open(path), 1):
                m = re.match(r'\s*#\s*include\s+"([a-z_]+)/([^"]+)"', line)
                if not m or m.group(1) == layer:
                    continue
                to = m.group(1)
                if to not in ALLOWED.get(layer, set()):
                    bad.append(f'{path}:{n}: {layer} must not include {to}/{m.group(2)}')
                elif layer == 'machine' and to == 'cpu' and f'cpu/{m.group(2)}' not in MACHINE_CPU_HEADERS:
                    bad.append(f'{path}:{n}: machine may use only {sorted(MACHINE_CPU_HEADERS)} of cpu')
    return bad


def symbols(archive):
    defined, undefined = set(), set()
    for line in subprocess.run(['nm', archive], capture_output=True, text=True, check=True).stdout.splitlines():
        m = re.match(r'^[0-9a-f ]{16} ([A-Za-z]) (\S+)$', line)
        if m:
            (undefined if m.group(1) == 'U' else defined).add(m.group(2))
    return defined, undefined


def check_cpu(archive, external, what, below=()):
    bad = []
    defined, undefined = symbols(archive)
    for other in below:
        defined |= symbols(other)[0]  # checked itself
    for s in sorted(undefined - defined):
        if not external.match(s):
            bad.append(f'{archive}: {what} calls {s}')
    member = ''
    text = subprocess.run(['objdump', '-d', '--no-show-raw-insn', archive], capture_output=True, text=True, check=True).stdout
    for line in text.splitlines():
        m = re.match(r'^(\S+)\.o:\s+file format', line)
        if m:
            member = m.group(1).split('.p/')[-1]
        elif re.search(r'%[xyz]mm\d|%fs:', line) and member not in CPU_VECTOR_FILES:
            if '%fs:0x28' not in line:
                bad.append(f'{member}: {line.strip()}')
    return bad


def main():
    src, cpu, rt = sys.argv[1:4]
    bad = check_layers(src) + check_cpu(cpu, CPU_EXTERNAL, 'src/cpu') + check_cpu(rt, RT_EXTERNAL, 'src/engine/rt', [cpu])
    print('\n'.join(bad))
    sys.exit(1 if bad else 0)


main()
