#!/usr/bin/env bash
# Every kernel on the emulator against its f64 reference, and the fake driver that launches them: plainly and under the
# sanitizers, in three orders of threads. Needs g++ on x86-64; no GPU, no driver, nothing of NVIDIA's.
#   run.sh [FOLDER for what is built]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
out="${1:-$here/../../../target/cuda/tests}"
mkdir -p "$out"
. "$here/programs.sh"
unset ONLAY_TEST_CARD
checks=(-O1 -fsanitize=address,undefined -fno-sanitize-recover=all)
two() { # at once: plainly, and checked
  "$1" "${@:2}" & local first=$!
  "$1-checked" "${@:2}" & local second=$!
  wait "$first"; wait "$second"
}
checked() { for test in "$@"; do build "$test" "$test-checked" "${checks[@]}"; done; }
driver() {
  "$here/../emulator/build.sh" "$out/libdriver.so" "${flags[@]}"
  build driver driver -O1 -pthread -L"$out" -l:libdriver.so -Wl,-rpath,'$ORIGIN'
}
driver-checked() {
  "$here/../emulator/build.sh" "$out/libdriver-checked.so" "${flags[@]}" "${checks[@]}"
  build driver driver-checked "${checks[@]}" -pthread -L"$out" -l:libdriver-checked.so -Wl,-rpath,'$ORIGIN'
}
programs
build emulator emulator -O1
checked products emulator learning & first=$!
checked attention rows wrappers decoders & second=$!
wait "$first"; wait "$second"
two driver
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
for test in wrappers rows products attention learning; do
  for order in forward backward shuffled; do
    for program in "$test" "$test-checked"; do
      ONLAY_EMULATOR_ORDER=$order "$out/$program" | sed "s/^$test/$program/"
    done
  done
done
for test in wrappers products; do ONLAY_EMULATOR_ORDER=shuffled "$out/$test-turing"; done
