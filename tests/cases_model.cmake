# model/: readers of checkpoints and configurations. The "published" runs need GLOWQ_DATA.
add_case(NAME safetensors PROGRAM test_safetensors LABELS unit)
add_case(NAME safetensors_published PROGRAM test_safetensors ARGS published LABELS unit)
add_case(NAME checkpoint_index PROGRAM test_checkpoint_index LABELS unit)
add_case(NAME config PROGRAM test_config LABELS unit)
add_case(NAME config_published PROGRAM test_config ARGS published LABELS unit)
add_case(NAME families PROGRAM test_families LABELS unit)
