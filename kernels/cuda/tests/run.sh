#!/usr/bin/env bash
# Every kernel on the emulator against its f64 reference: plainly and under the sanitizers, in three orders of threads.
# Needs g++ on x86-64; no GPU, no driver, nothing of NVIDIA's.   run.sh [FOLDER for what is built]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-$here/../../../target/cuda/tests}"
mkdir -p "$out"
flags=(-std=c++17 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-function)
build() { g++ "${flags[@]}" "${@:3}" "$here/$1.cpp" -o "$out/$2"; }
jobs=()
for test in emulator decoders rows products attention learning; do
  build "$test" "$test" -O1 & jobs+=($!)
  build "$test" "$test-checked" -O1 -fsanitize=address,undefined -fno-sanitize-recover=all & jobs+=($!)
  wait "${jobs[@]}"; jobs=()
done
build products products-turing -O1 -DONLAY_EMULATE_TURING
# a fibre's stack is no stack the sanitizer knows
export ASAN_OPTIONS=detect_stack_use_after_return=0:detect_leaks=0
for program in emulator emulator-checked; do "$out/$program" | sed "s/^emulator/$program/"; done
for program in decoders decoders-checked; do
  "$out/$program" "$here/../../tests/data/decode.txt" | sed "s/^decoders/$program/"
done
for test in rows products attention learning; do
  for order in forward backward shuffled; do
    for program in "$test" "$test-checked"; do
      ONLAY_EMULATOR_ORDER=$order "$out/$program" | sed "s/^$test/$program/"
    done
  done
done
ONLAY_EMULATOR_ORDER=shuffled "$out/products-turing"
