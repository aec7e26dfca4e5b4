# The store's files: round trips, equal bytes, what must be refused; the same of layers with experts; damage of every kind.
add_case(NAME store PROGRAM test_store LABELS unit)
add_case(NAME store_experts PROGRAM test_store_experts LABELS unit)
add_case(NAME store_damage PROGRAM test_store_damage LABELS unit fault)
