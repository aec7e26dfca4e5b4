# Tokenizers: golden vectors and hostile files everywhere, real tokenizers where GLOWQ_DATA names them.
add_case(NAME tokenizer PROGRAM test_tokenizer LABELS unit)
add_case(NAME tokenizer_files PROGRAM test_tokenizer_files LABELS unit)
add_case(NAME tokenizer_shared PROGRAM test_tokenizer ARGS shared LABELS unit)
