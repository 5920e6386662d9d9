"Many archives on one server: loaded when a request asks for them, within a memory budget"
