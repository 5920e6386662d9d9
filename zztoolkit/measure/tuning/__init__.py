"Find the best setting of a service within an objective"
