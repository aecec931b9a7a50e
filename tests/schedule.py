"Which of `make test`'s workers gets which test, also when a worker dies."
from xdist.scheduler import LoadScopeScheduling

TOGETHER = ("tests/test_docs.py", "tests/test_plugins.py", "tests/browser/")   # places whose tests share something costly


class Schedule(LoadScopeScheduling):
    """Tests one by one to the free worker, but those of a place in `TOGETHER` to the same.

    xdist's own hands a dead worker's finished tests out again, which nobody answers for, and lets a new worker wait for a
    second test that does not come: either way the session would never end."""
    def _split_scope(self, nodeid): return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)

    def remove_node(self, node):
        had = self.assigned_work[node]
        died = next((t for unit in had.values() for t, done in unit.items() if not done), None)
        if died is None: return super().remove_node(node)
        next(unit for unit in had.values() if died in unit)[died] = True        # it failed, and is not tried again
        self.assigned_work[node] = {}
        super().remove_node(node)
        self.workqueue.update({scope: unit for scope, unit in had.items() if not all(unit.values())})
        for other in self.nodes: self._reschedule(other)
        return died

    def _reschedule(self, node):
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) <= 2: super()._reschedule(node)
        if not self.workqueue:
            for n in self.nodes: n.shutdown()                                   # each does what it has, and ends
