# Row ops at the sizes of real models and at their edges, on every backend.
foreach(device cpu cpu:ref cpu:check cuda:sim cuda:sim:f32 cuda cuda:f32)
  string(REPLACE ":" "_" suffix ${device})
  set(labels unit)
  if(device MATCHES "^cuda(:f32)?$")
    set(labels gpu)
  endif()
  add_case(NAME rows_${suffix} PROGRAM test_rows ARGS ${device} LABELS ${labels})
endforeach()
