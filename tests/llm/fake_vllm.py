"Speaks as `vllm serve` does, as slowly, and fails as it may: HOW is one of good, crash, error, cut, hang"
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOW = os.environ.get("HOW", "good")
WORDS = ["The", " capital", " is", " Paris", "."]

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/metrics": self.wfile.write(b"vllm:num_requests_running{engine=\"0\"} 2.0\n")

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if self.headers["authorization"] != f"Bearer {os.environ['VLLM_API_KEY']}": return self.fail(401, "no")
        if HOW == "error": return self.fail(500, "EngineCore encountered an issue")
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for i, word in enumerate(WORDS):
            if HOW == "cut" and i == 2: return
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            self.send({"choices": [choice]})
        self.send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def fail(self, status, message):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps({"error": {"message": message, "type": "Error"}}).encode())

    def send(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

print("fake vllm", HOW, flush=True)
if HOW == "crash": sys.exit("ValueError: No available memory for the cache blocks")
time.sleep(1)
if HOW == "hang": signal.signal(signal.SIGTERM, signal.SIG_IGN)
else: signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
