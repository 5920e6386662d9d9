"What compiles and runs a model: one module for each backend"
