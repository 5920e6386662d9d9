"TorchServe as a server: its files, its process, its management API, its logs and metrics"
