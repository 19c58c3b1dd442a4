# How the test programs are built; run.sh and card.sh read this, with `out`, the folder for what is built. A program has the
# PTX within and needs nothing but a C library no older than 2.35 or this machine's; unused parts of the C++ library, which
# would ask for a later one, are left out.
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
flags=(-std=c++17 -g1 -Wall -Wextra -Werror -Wno-unknown-pragmas -Wno-unused-function)
alone=(-O1 -static-libstdc++ -static-libgcc -Wl,--gc-sections)
build() { # NAME of the source, NAME of the program, more flags
  g++ "${flags[@]}" "$here/$1.cpp" "$out/card.o" "${@:3}" -ldl -o "$out/$2"
}
programs() { # what card.sh runs, two at once
  card
  cp "$here/../../tests/data/decode.txt" "$here/card.sh" "$out/"
  { for test in products wrappers attention speed; do build "$test" "$test" "${alone[@]}"; done; } & local first=$!
  { for test in rows learning decoders; do build "$test" "$test" "${alone[@]}"; done
    for test in products wrappers; do build "$test" "$test-turing" "${alone[@]}" -DONLAY_EMULATE_TURING; done
  } & local second=$!
  wait "$first"; wait "$second"
}
card() { # what all of them are linked with
  local files=("$here"/../ptx/*.ptx "$here"/ptx/*.ptx) texts entries
  texts="$(printf '%s\n' "${files[@]}" | sed -E 's/.*\/(.*)\.([0-9]+)\.ptx$/TEXT(\1, \2)/' | tr '\n' ' ')"
  entries="$(sed -n 's/.*\.entry \([A-Za-z0-9_]*\)(.*/ENTRY(\1)/p' "${files[@]}" | sort -u | tr '\n' ' ')"
  g++ "${flags[@]}" -O1 -c "-Wa,-I$here/../ptx,-I$here/ptx" "-DTEXTS=$texts" "-DENTRIES=$entries" \
    "$here/card.cpp" -o "$out/card.o"
}
