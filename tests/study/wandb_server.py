"""A wandb server on the loopback that knows one grid sweep: the few calls of `wandb sweep` and `wandb agent`, and no others."""

import itertools
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml

ENTITY, SWEEP = "tester", "tinygrid"


class SweepServer(ThreadingHTTPServer):
    """Takes the configuration of a sweep, hands out its runs one after the other, then tells the agent to exit.

    Attributes:
        config: of the sweep, as it arrived.
        project: that the sweep was put in.
        waiting: flag -> value of the runs that are still to be done, in the order of the grid.
        handed_out: run id -> flag -> value of the others.
        dismissed: whether the agent was told to exit.
        refused: names of the calls that have no answer here.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.config: dict = {}
        self.project = ""
        self.waiting: list[dict] = []
        self.handed_out: dict[str, dict] = {}
        self.dismissed = False
        self.refused: list[str] = []
        self._text = ""
        self._answers = {  # name of a GraphQL operation -> what answers its variables
            "Viewer": lambda _: {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}},
            "UpsertSweep": self._take_sweep,
            "SweepWithRuns": lambda _: {"project": {"sweep": {"name": SWEEP, "config": self._text, "runs": {"edges": []}}}},
            "CreateAgent": lambda _: {"createAgent": {"agent": {"id": "agent"}}},
            "Heartbeat": lambda sent: {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(self._commands(sent))}},
        }

    @property
    def url(self) -> str:
        """What WANDB_BASE_URL has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, name: str, body: bytes) -> tuple[int, dict]:
        """Status and content for a call; one that is not in the table is refused by name, and remembered."""
        variables: dict = {}
        if name == "POST /graphql":
            call = json.loads(body)
            name, variables = re.search(r"(?:query|mutation)\s+(\w+)", call["query"])[1], call.get("variables", {})
        if name not in self._answers:
            self.refused.append(name)
            return 400, {"errors": [{"message": f"tests/study/wandb_server.py has no answer to {name}"}]}
        return 200, {"data": self._answers[name](variables)}

    def _take_sweep(self, sent: dict) -> dict:
        self._text, self.project = sent["config"], sent["projectName"]
        self.config = yaml.safe_load(self._text)
        parameters = self.config["parameters"]
        choices = [row["values"] if "values" in row else [row["value"]] for row in parameters.values()]
        self.waiting = [dict(zip(parameters, point, strict=True)) for point in itertools.product(*choices)]
        project = {"id": "1", "name": self.project, "entity": {"id": "1", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}

    def _commands(self, sent: dict) -> list[dict]:
        if json.loads(sent["runState"]):  # one run at a time: the second shall find the store of the first
            return []
        if not self.waiting:
            self.dismissed = True
            return [{"type": "exit"}]
        run_id, flags = f"run{len(self.handed_out)}", self.waiting.pop(0)
        self.handed_out[run_id] = flags
        args = {name: {"value": value} for name, value in flags.items()}
        return [{"type": "run", "run_id": run_id, "program": self.config["program"], "args": args}]


class Handler(BaseHTTPRequestHandler):
    """Passes what arrives to the server's table."""

    server: SweepServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, content = self.server.answer(f"{self.command} {self.path}", body)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self) -> None:
        self.do_POST()

    def log_message(self, *_) -> None:
        """Nothing: the inherited one writes a line for each call."""
