# The store's files: round trips, equal bytes, damage.
add_case(NAME store PROGRAM test_store LABELS unit)
