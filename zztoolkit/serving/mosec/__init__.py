"mosec as a server: its processes, its workers, and one version of a model after another"
