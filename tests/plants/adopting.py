"""What is planted in the adoption of another declaration, and in what is carried with a message."""

from __future__ import annotations

from .plant import Plant

_ADOPTION = "supervise/_trio/adoption.py"
_FOREST = "supervise/_core/forest.py"
_MACHINE = "supervise/_core/machine.py"
_NODE = "supervise/_core/node.py"
_DRIVER = "supervise/_trio/driver.py"
_MAILBOX = "supervise/_trio/mailbox.py"
_MESSAGE = "supervise/_trio/message.py"
_RELOAD = "supervise/cli/reload.py"
_ADOPTING = (
    "tests/tree/test_adopting.py",
    "tests/tree/test_adopting_at_odd_times.py",
    "tests/tree/test_adopting_random_trees.py",
)
_CARRYING = ("tests/tree/test_carrying.py",)
_RELOADING = ("tests/cli/test_reloading.py",)

ADOPTING = tuple(
    Plant(name, file, old, new, tests)
    for name, file, old, new, tests in (
        (
            "a restart in one step goes on with the earlier declaration",
            _DRIVER,
            " or leaf.spec is not leaf._node.spec:",
            ":",
            _ADOPTING,
        ),
        (
            "a restart in the same task goes on with the earlier declaration",
            _DRIVER,
            " and leaving.spec is node.spec:",
            ":",
            _ADOPTING,
        ),
        (
            "a child that a failure has restarted already is restarted once more",
            _ADOPTION,
            "        if leaf.spec is node.spec:\n            return False  #",
            "        if leaf.spec is node.spec:\n            return True  #",
            _ADOPTING,
        ),
        (
            "what was stopped by hand is started",
            _ADOPTION,
            ' and (node.why is not None or node.state == "restarting")',
            "",
            _ADOPTING,
        ),
        (
            "a supervisor below one that ends takes its declaration before that",
            _ADOPTION,
            '            if not self._is_taken(path.rpartition("/")[0]):\n                continue\n',
            "",
            _ADOPTING,
        ),
        (
            "a child that is added meanwhile keeps its code",
            _ADOPTION,
            "        return any(change.restarts for change in changed(node.path, leaf.spec, leaf.spec, node.spec))",
            "        return False",
            _ADOPTING,
        ),
        (
            "a member of a pool goes on taking messages from an earlier mailbox",
            _ADOPTION,
            "            if self._has_another_queue(leaf):\n",
            "            if False:\n",
            _ADOPTING,
        ),
        (
            "a child with another mailbox to share is not in the changes",
            "supervise/_core/changes.py",
            " and owners[0] != owners[1]:",
            " and False:",
            _ADOPTING,
        ),
        (
            "a mailbox that no running child shares any more stays open",
            _ADOPTION,
            "                self._driver.close_or_open(address)",
            "                pass",
            _ADOPTING,
        ),
        (
            "a mailbox that was made during a restart outlives the declaration",
            "supervise/_trio/address.py",
            "            self.adopt(spec)\n",
            "            pass\n",
            _ADOPTING,
        ),
        (
            "a new child is down for good while what stood there before still ends",
            _FOREST,
            "comes = not gone[0] and _declares_anew(",
            "comes = gone[0] and _declares_anew(",
            _ADOPTING,
        ),
        (
            "callers wait at a mailbox that its supervisor has no more, while new children start",
            _ADOPTION,
            "                self._adopt_mailbox(machine.path, spec)\n",
            "                pass\n",
            _ADOPTING,
        ),
        (
            "an adoption says that it is done behind the end of the tree",
            _ADOPTION,
            "        if not self._is_over:\n",
            "        if True:\n",
            _ADOPTING,
        ),
        (
            "a child that is added meanwhile, and does not fit, keeps the declaration out",
            _MACHINE,
            "                else not _fits(spec, node.spec)\n",
            "                else False\n",
            _ADOPTING,
        ),
        (
            "a child of a supervisor begins with an incarnation that a member of a pool had",
            _NODE,
            "        if not isinstance(spec, Pool):\n",
            "        if False:\n",
            _ADOPTING,
        ),
        (
            "an adoption asks a root for ever whose restart has failed",
            _ADOPTION,
            " and not forest.root_waits_for_its_end:",
            " and forest.restarting is None:",
            _ADOPTING,
        ),
        (
            "an adoption begins though the tree is stopping",
            _ADOPTION,
            "        if self._is_over:\n",
            "        if False:\n",
            _ADOPTING,
        ),
        (
            "a child that is added meanwhile under a declared name keeps the declaration out",
            _ADOPTION,
            '                if refused.reason == "running":\n                    continue\n',
            "",
            _ADOPTING,
        ),
        (
            "children keep the order in which they joined",
            _MACHINE,
            "        self.children.clear()\n        self.joined = 0\n        for child in self.spec.children:\n",
            "        self.joined = 0\n        for child in self.spec.children:\n",
            _ADOPTING,
        ),
        (
            "a limit that has changed goes on counting as before",
            _MACHINE,
            "        if spec.limit != before.limit:\n            self._count_anew()\n",
            "        if spec.limit != before.limit:\n",
            _ADOPTING,
        ),
        (
            "a decider is taken only at the next start",
            _NODE,
            '("spec", "decider", "delays"',
            '("spec", "delays"',
            _ADOPTING,
        ),
        (
            "a mailbox that is larger now lets no sender in",
            _MAILBOX,
            "        self._take(spec)\n        self.admit()\n",
            "        self._take(spec)\n",
            _ADOPTING,
        ),
        (
            "callers wait for ever at a mailbox that is declared no more",
            "supervise/_trio/address.py",
            "            mailbox.close(None)\n            self.mailbox = None\n",
            "            self.mailbox = None\n",
            _ADOPTING,
        ),
        (
            "modules that failed to load stay half loaded",
            _RELOAD,
            "            sys.modules.update(before)\n",
            "",
            _RELOADING,
        ),
        (
            "a package keeps the earlier module as its attribute",
            _RELOAD,
            "            vars(before[above]).pop(last, None)\n",
            "            pass\n",
            _RELOADING,
        ),
        (
            "a file that a reload has brought is taken for the one that was loaded, whatever was saved meanwhile",
            _RELOAD,
            "            self._known = self._stamps() | self._known\n",
            "            pass\n",
            _RELOADING,
        ),
        (
            "what a message carries is lost when it is put back",
            _MESSAGE,
            "        again.memo, again._carried = self.memo, self.carried\n",
            "        again.memo = self.memo\n",
            _CARRYING,
        ),
        (
            "a message without a reply stays in hand for ever if it carries something",
            _MESSAGE,
            '        if self.on_loss == "requeue":\n            inbox.held[message] = None\n        inbox.progressed',
            "        inbox.held[message] = None\n        inbox.progressed",
            _CARRYING,
        ),
        (
            "a sender without a reply carries nothing once its address has been used",
            "supervise/_trio/ref.py",
            "mailbox.carry is not None or not",
            "not",
            _CARRYING,
        ),
    )
)
