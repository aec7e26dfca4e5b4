add_case(NAME http PROGRAM test_http LABELS serve)
