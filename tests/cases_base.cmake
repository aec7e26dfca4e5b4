# base/: numbers, files, JSON, hashes, talk.
add_case(NAME base PROGRAM test_base LABELS unit)
add_case(NAME terminal PROGRAM test_base ARGS terminal LABELS unit)
add_case(NAME numbers PROGRAM test_numbers LABELS unit)
add_case(NAME host PROGRAM test_host LABELS unit)
