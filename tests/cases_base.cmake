# base/: numbers, files, JSON, hashes, talk.
add_case(NAME base PROGRAM test_base LABELS unit)
add_case(NAME numbers PROGRAM test_numbers LABELS unit)
