# Chat templates: golden renderings and bounds everywhere, published templates where GLOWQ_DATA names them.
add_case(NAME chat_template PROGRAM test_chat_template LABELS unit)
add_case(NAME chat_template_shared PROGRAM test_chat_template ARGS shared LABELS unit)
add_fuzz(template model)
add_fuzz_case(template 40000 unit)
