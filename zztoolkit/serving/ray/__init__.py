"Ray Serve as a server: its replicas, the process in front of them, and one application for each version"
