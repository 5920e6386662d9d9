"Backends that export and run a model, one module each"
