# base/: numbers, files, JSON, hashes, talk.
add_case(NAME base PROGRAM test_base LABELS unit)
