#!/usr/bin/env bash
# Runs the demo and writes what it prints to docs/demo.svg, a plain SVG of text for the README. The machine's address and
# paths do not appear in it, except for the ports on loopback.
#
#   scripts/recording.sh [FILE.svg]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:-docs/demo.svg}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
unset AUTOPAY_CLIENT_ID AUTOPAY_CLIENT_SECRET # never record the tokens of a real account

make demo >"$tmp/demo.txt" || {
  cat "$tmp/demo.txt" >&2
  exit 1
}

# From the first heading, after the lines of the build, to the first use of the token; then the last heading.
{
  sed -n '/^# Register/,/^# The token is replaced/p' "$tmp/demo.txt" | sed '$d'
  printf '[...]\n\n'
  grep '^# Done' "$tmp/demo.txt"
} | awk -v columns=110 '
  {
    line = $0
    while (length(line) > columns) {
      lines[++n] = substr(line, 1, columns - 1) "\\"
      line = "    " substr(line, columns)
    }
    lines[++n] = line
  }
  END {
    while (n > 0 && lines[n] == "") n--
    width = columns * 7.8 + 32
    height = n * 18 + 32
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\">\n", width, height, width
    print "<title>make demo: from the registration of the plugin to a token that is used</title>"
    printf "<rect width=\"%d\" height=\"%d\" rx=\"8\" fill=\"#0d1117\"/>\n", width, height
    print "<g font-family=\"ui-monospace, Menlo, Consolas, monospace\" font-size=\"13\" fill=\"#c9d1d9\" xml:space=\"preserve\">"
    for (i = 1; i <= n; i++) {
      text = lines[i]
      style = text ~ /^# / ? " fill=\"#d2a8ff\" font-weight=\"bold\"" : text ~ /^\$ / ? " fill=\"#7ee787\"" : ""
      gsub(/&/, "\\&amp;", text)
      gsub(/</, "\\&lt;", text)
      gsub(/>/, "\\&gt;", text)
      if (text != "") printf "<text x=\"16\" y=\"%d\"%s>%s</text>\n", i * 18 + 12, style, text
    }
    print "</g>\n</svg>"
  }' >"$tmp/demo.svg"
mv "$tmp/demo.svg" "$out"
echo "recording: written $out"
