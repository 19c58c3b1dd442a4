#!/usr/bin/env python3
"""kernels/cuda/*.cu to the committed PTX in kernels/cuda/ptx, without a GPU, a driver or a toolkit; what is for tests alone,
kernels/cuda/tests/*.cu, to kernels/cuda/tests/ptx.

    gen_ptx.py            writes the files
    gen_ptx.py --check    compares instead, and writes nothing

Three packages of compilers, pinned by version and hash, come from the package index into a cache folder
(ONLAY_CUDA_CACHE, or target/cuda). NVRTC makes PTX for a virtual architecture; its version line is lowered to 7.8, which
drivers from R520 (CUDA 11.8) on take; then an old assembler and a new one must take the very text for every card named
below, without a register spilled or a symbol left open. The driver compiles the same text again on the card, so what
these assemblers accept is what stands in for it here.
"""
import argparse
import ctypes
import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("ONLAY_CUDA_CACHE", HERE.parent.parent / "target" / "cuda"))
PACKAGES = {
    "nvrtc": ("nvidia-cuda-nvrtc-cu12", "12.4.127", "a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338"),
    "old": ("nvidia-cuda-nvcc-cu12", "12.0.140", "958d54df87d0c0b7207e7fed403d6eeda0890a01cc44cfeaccf87c7f90e9b165"),
    "new": ("nvidia-cuda-nvcc-cu12", "12.9.86", "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0"),
}
WANTED = re.compile(r"nvidia/(cuda_nvrtc/lib/libnvrtc.*\.so.*|cuda_nvcc/bin/ptxas)$")
VERSION = "7.8"
# What runs on Turing runs on everything later; only the tensor cores ask for a text of their own from Ampere on.
ARCHITECTURES = {"default": ["75"], "matmul_tensor": ["75", "80"], "wrappers": ["75", "80"]}
CARDS = {"75": ["75", "80", "86", "89", "90", "120"], "80": ["80", "86", "89", "90", "120"]}
OLD_KNOWS = {"75", "80", "86", "89", "90"}


def fetch(which):
    """The folder of a package's compilers."""
    name, version, digest = PACKAGES[which]
    folder = CACHE / f"{name}-{version}"
    if (folder / "complete").exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        asked = pathlib.Path(scratch) / "asked.txt"
        asked.write_text(f"{name}=={version} --hash=sha256:{digest}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        subprocess.run(pip + ["--only-binary=:all:", "--require-hashes", "-d", scratch, "-r", asked], check=True)
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as z:
            for member in z.namelist():
                if WANTED.match(member):
                    z.extract(member, folder)
    for tool in folder.glob("nvidia/cuda_nvcc/bin/ptxas"):
        tool.chmod(0o755)
    (folder / "complete").touch()
    return folder


class Nvrtc:
    """The compiler from CUDA C++ to PTX."""

    def __init__(self):
        lib = fetch("nvrtc") / "nvidia/cuda_nvrtc/lib"
        (builtins,) = lib.glob("libnvrtc-builtins.so.*")
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        (main,) = lib.glob("libnvrtc.so.*")
        self.lib = ctypes.CDLL(str(main))

    def _text(self, size, get, program):
        n = ctypes.c_size_t()
        getattr(self.lib, size)(program, ctypes.byref(n))
        buffer = ctypes.create_string_buffer(n.value)
        getattr(self.lib, get)(program, buffer)
        return buffer.value.decode()

    def compile(self, source, architecture):
        program = ctypes.c_void_p()
        code, name = source.read_bytes(), source.name.encode()
        self.lib.nvrtcCreateProgram(ctypes.byref(program), code, name, 0, None, None)
        options = [f"--gpu-architecture=compute_{architecture}", "--std=c++17", f"-I{source.parent}"]
        options = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        failed = self.lib.nvrtcCompileProgram(program, len(options), options)
        log = self._text("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)
        if failed:
            sys.exit(f"{source.name}, compute_{architecture}:\n{log}")
        if "warning" in log:
            sys.exit(f"{source.name}, compute_{architecture}: warnings are errors\n{log}")
        return self._text("nvrtcGetPTXSize", "nvrtcGetPTX", program)


def sources():
    return sorted(HERE.glob("*.cu")) + sorted(HERE.glob("tests/*.cu"))


def stamp(source):
    """A hash of what the PTX of a source is made from: known without a compiler."""
    digest = hashlib.sha256()
    for path in [source, HERE / "blocks.h", HERE / "device.h", HERE / "gen_ptx.py"]:
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def ptx(nvrtc, source, architecture):
    text = nvrtc.compile(source, architecture)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\.version .*$", f".version {VERSION}", text, flags=re.M)
    text = "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
    return f"// Generated by gen_ptx.py from {source.name}; do not edit.\n// Made from {stamp(source)}.\n{text}\n"


def assemble(which, path, card):
    """What is wrong with a text for a card, and the most registers a kernel takes."""
    tool = fetch(which) / "nvidia/cuda_nvcc/bin/ptxas"
    done = subprocess.run([tool, "-v", f"-arch=sm_{card}", path, "-o", os.devnull], capture_output=True, text=True)
    said = done.stdout + done.stderr
    wrong = []
    if done.returncode:
        wrong.append(said.strip())
    if "nresolved" in said:
        wrong.append("symbols left open: " + said.strip())
    entry = ""
    for line in said.splitlines():
        if "Compiling entry function" in line:
            entry = line.split("'")[1]
        found = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if found and any(int(n) for n in found.groups()):
            wrong.append(f"{entry}: {found.group(0)}")
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    return wrong, max(registers, default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files and write nothing")
    check = parser.parse_args().check
    wrong, made, nvrtc = [], set(), Nvrtc()
    with tempfile.TemporaryDirectory() as scratch:
        for source in sources():
            for architecture in ARCHITECTURES.get(source.stem, ARCHITECTURES["default"]):
                name = f"{source.stem}.{architecture}.ptx"
                text = ptx(nvrtc, source, architecture)
                path = pathlib.Path(scratch) / name
                path.write_text(text)
                if text.encode() != ptx(nvrtc, source, architecture).encode():
                    wrong.append(f"{name}: two runs of the compiler differ")
                seen = []
                for card in CARDS[architecture]:
                    for which in ["old", "new"] if card in OLD_KNOWS else ["new"]:
                        found, registers = assemble(which, path, card)
                        wrong += [f"{name}, {which} assembler, sm_{card}: {w}" for w in found]
                        seen.append(registers)
                kernels = text.count(".entry ")
                print(f"{name}: {kernels} kernels, {len(text)} bytes, at most {max(seen)} registers", flush=True)
                target = source.parent / "ptx" / name
                made.add(target)
                if not check:
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes(text.encode())
                elif not target.exists() or target.read_bytes() != text.encode():
                    wrong.append(f"{name}: not what the sources give; run kernels/cuda/gen_ptx.py")
    for stale in sorted({file for target in made for file in target.parent.iterdir()} - made):
        if check:
            wrong.append(f"{stale.name}: no source gives it")
        else:
            stale.unlink()
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
