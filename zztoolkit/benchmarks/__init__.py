"What `make demo`, `make ladder` and `make bench-*` run; nothing in the library imports it"
