"""Judges memcheck's errors: `side_channels.py CASES ERRORS.XML ALLOWED`, from ci/side-channels.

An error belongs to the case whose function is in its stack. It is accepted where a line of ALLOWED matches: a pattern for
`function@folder/file:line` of the innermost frame, after `<-` one for its caller, white space, the reason.
"""

import collections
import re
import sys
import xml.etree.ElementTree as xml

cases_file, errors_file, allowed_file = sys.argv[1:]
cases = open(cases_file).read().split()
allowed = []
for line in open(allowed_file):
    if line.strip() and not line.startswith("#"):
        pattern, reason = line.split(None, 1)
        allowed.append(([re.compile(part) for part in pattern.split("<-")], reason.strip()))

seen = collections.Counter()
accepted = collections.Counter()
refused = []
used = set()
for error in xml.parse(errors_file).getroot().findall("error"):
    frames = []
    for frame in error.find("stack").findall("frame"):
        text = lambda name: frame.findtext(name) or "?"
        frames.append(f"{text('fn')}@{text('dir')}/{text('file')}:{text('line')}")
    case = next((name for name in cases for frame in frames if f"side_channels::{name}" in frame), "?")
    seen[case] += 1
    fits = lambda parts: all(part.search(frame) for part, frame in zip(parts, frames))
    match = next((index for index, (parts, _) in enumerate(allowed) if fits(parts)), None)
    if match is None:
        refused.append((case, error.findtext("kind"), frames))
    else:
        used.add(match)
        accepted[case] += 1

failed = not cases
for case in cases:
    control = case.startswith("control_")
    open_errors = sum(1 for of, _, _ in refused if of == case)
    good = (seen[case] > 0) if control else open_errors == 0
    failed |= not good
    print(f"{'ok  ' if good else 'FAIL'} {case:20} {seen[case]:4} places, {accepted[case]:4} of them accepted")
for case, kind, frames in refused:
    if not case.startswith("control_"):
        failed = True
        print(f"{case}: {kind}")
        for frame in frames[:12]:
            print(f"    {frame}")
for index, (_, reason) in enumerate(allowed):
    if index not in used:
        print(f"accepted, and not seen here: {reason}")
sys.exit(failed)
