#!/usr/bin/env bash
# driver.cpp and all kernels to a shared library that is opened in place of libcuda.so.1. Makes it again only when a
# source is newer; two at once do no harm. Says nothing unless it fails. Needs g++ on x86-64 Linux.
#   build.sh [OUTPUT.so [more flags of g++]]       without: target/cuda/libonlay-fake-cuda.so
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
output="${1:-$here/../../../target/cuda/libonlay-fake-cuda.so}"
if [ -e "$output" ] && [ -z "$(find "$here" "$here/.." -maxdepth 1 -type f -newer "$output" -print -quit)" ] &&
  [ -z "$(find "$here/../ptx" "$here/../tests/ptx" "$here/../tests/wrappers.cu" -newer "$output" -print -quit)" ]; then
  exit 0
fi
mkdir -p "$(dirname "$output")"
# as old as the sources it is made from: one that changes meanwhile is newer
started="$(mktemp "$output.XXXXXX")"
made="$(mktemp "$output.XXXXXX")"
trap 'rm -f "$started" "$made"' EXIT
entries="$(sed -n 's/.*\.entry \([A-Za-z0-9_]*\)(.*/ENTRY(\1)/p' "$here"/../ptx/*.ptx "$here"/../tests/ptx/*.ptx |
  sort -u | tr '\n' ' ')"
fast=() # fused() is one instruction where the machine has it, and else a call; nothing else is fused
if grep -qsw fma /proc/cpuinfo; then fast=(-mfma -ffp-contract=off); fi
g++ -std=c++17 -O2 "${fast[@]}" -shared -fPIC -fvisibility=hidden "-DENTRIES=$entries" "${@:2}" "$here/driver.cpp" -o "$made"
chmod 755 "$made"
touch -r "$started" "$made"
mv -f "$made" "$output"
