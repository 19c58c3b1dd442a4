#!/usr/bin/env bash
# Every kernel on the emulator against its f64 reference, and the fake driver that launches them: plainly and under the
# sanitizers, in three orders of threads. Needs g++ on x86-64; no GPU, no driver, nothing of NVIDIA's.
#   run.sh [FOLDER for what is built]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-$here/../../../target/cuda/tests}"
mkdir -p "$out"
flags=(-std=c++17 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-function)
checks=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=all)
build() { g++ "${flags[@]}" "$here/$1.cpp" "${@:3}" -o "$out/$2"; }
two() { # at once: plainly, and checked
  "$1" "${@:2}" & local first=$!
  "$1-checked" "${@:2}" & local second=$!
  wait "$first"; wait "$second"
}
plain() { build "$1" "$1" -O1; }
plain-checked() { build "$1" "$1-checked" "${checks[@]}"; }
driver() {
  "$here/../emulator/build.sh" "$out/libdriver.so" "${flags[@]}"
  build driver driver -O1 -pthread -L"$out" -l:libdriver.so -Wl,-rpath,'$ORIGIN'
}
driver-checked() {
  "$here/../emulator/build.sh" "$out/libdriver-checked.so" "${flags[@]}" "${checks[@]}"
  build driver driver-checked "${checks[@]}" -pthread -L"$out" -l:libdriver-checked.so -Wl,-rpath,'$ORIGIN'
}
for test in emulator decoders rows products attention learning; do two plain "$test"; done
two driver
build products products-turing -O1 -DONLAY_EMULATE_TURING
# a fibre's stack is no stack the sanitizer knows
export ASAN_OPTIONS=detect_stack_use_after_return=0:detect_leaks=0
for program in emulator emulator-checked; do "$out/$program" | sed "s/^emulator/$program/"; done
for program in decoders decoders-checked; do
  "$out/$program" "$here/../../tests/data/decode.txt" | sed "s/^decoders/$program/"
done
for order in forward backward shuffled; do
  for program in driver driver-checked; do
    ONLAY_EMULATOR_ORDER=$order "$out/$program" "$here/../ptx" | sed "s/^driver/$program/"
  done
done
for test in rows products attention learning; do
  for order in forward backward shuffled; do
    for program in "$test" "$test-checked"; do
      ONLAY_EMULATOR_ORDER=$order "$out/$program" | sed "s/^$test/$program/"
    done
  done
done
ONLAY_EMULATOR_ORDER=shuffled "$out/products-turing"
