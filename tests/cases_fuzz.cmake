# Readers of what strangers give: every file of a checkpoint and the manifest of a .glowq folder. Those of templates and of the
# server are with their rooms' cases.
add_fuzz(safetensors model)
add_fuzz_case(safetensors 20000 unit)
add_fuzz(index model)
add_fuzz_case(index 10000 unit)
add_fuzz(config calib)
add_fuzz_case(config 20000 unit)
add_fuzz(tokenizer model)
add_fuzz_case(tokenizer 3000 unit)
add_fuzz(manifest model)
add_fuzz_case(manifest 500 unit)
