// What the page knows: the rows of the last status, the last events, and a lane for each node. No document, no network.

const EVENTS = 10_000; // as many as the program keeps
const SEGMENTS = 300; // of one lane
const RECENT = 60; // seconds in which a failure counts as trouble
const SLOW = 10; // seconds after which a start or a stop counts as trouble

const STATE_AFTER = {
  Starting: "starting",
  Ready: "up",
  Resumed: "up",
  StartFailed: "failed",
  Failed: "failed",
  Stopping: "stopping",
  Stopped: "down",
  BackingOff: "restarting",
};

const ENDS = new Set(["Failed", "Returned", "Stopping"]);

/** How bad the state of a node is: 0 if it is as it should be, at most 3. `now` in seconds since 1970. */
export function trouble(row, now) {
  if (row.state === "failed" || row.state === "condemned") return 3;
  if (row.state === "restarting" || row.state === "releasing") return 2;
  if (row.state === "down" && row.incarnation > 0 && row.restart === "permanent") return 2;
  if (row.restarts > 0) return 1;
  if (row.decision && now - row.decision.at < RECENT) return 1;
  return (row.state === "starting" || row.state === "stopping") && now - row.since > SLOW ? 1 : 0;
}

/** The life of one node as far as the events go back. */
class Lane {
  constructor() {
    this.segments = []; // {from, state, incarnation}: each ends where the next begins
    this.marks = []; // {time, kind, incarnation, type, text, label, decided, recovered: {seconds, incarnation}}
    this.events = []; // its own among those that the model keeps
    this.seq = 0;
    this.guessed = false; // the only segment comes from a status
    this.fell = null; // when it failed, until it is up again
  }

  turn(from, state, incarnation) {
    const end = this.segments.at(-1);
    if (end && end.state === state && end.incarnation === incarnation) return;
    this.segments.push({ from, state, incarnation });
    if (this.segments.length > SEGMENTS) this.segments.splice(0, SEGMENTS / 10);
  }

  note(mark) {
    this.marks.push({ label: null, decided: null, recovered: null, ...mark });
    if (this.marks.length > SEGMENTS) this.marks.splice(0, SEGMENTS / 10);
  }

  /** `begin` is the time of the first event that is kept. */
  take(event, begin) {
    const { kind, time, incarnation } = event;
    if (this.guessed) [this.segments, this.guessed] = [[], false];
    // Its start is no longer kept: what ends now has been up until now.
    if (this.segments.length === 0 && ENDS.has(kind)) this.turn(begin, "up", incarnation);
    this.seq = event.seq;
    this.events.push(event);
    if (kind === "Failed") {
      this.fell ??= time;
      this.note({ kind: "failure", time, incarnation, text: event.text ?? "", type: event.exc.type });
    } else if (kind === "Decided") {
      const fallen = this.marks.findLast((mark) => mark.kind === "failure");
      if (fallen && !fallen.decided) fallen.decided = event;
      if (event.directive !== "Resume") this.turn(time, "releasing", incarnation);
    } else if (kind === "StopError") {
      this.note({ kind: "failure", time, incarnation, text: event.text ?? "", type: event.exc.type, label: "failed while stopping" });
    } else if (kind === "Overdue" || kind === "StartOverdue") {
      this.note({ kind: "overdue", time, incarnation, text: event.text ?? "", label: "overdue" });
    }
    if ((kind === "Ready" || kind === "Resumed") && this.fell !== null) {
      const fallen = this.marks.findLast((mark) => mark.kind === "failure");
      if (fallen) fallen.recovered = { seconds: time - this.fell, incarnation };
      this.fell = null;
    }
    if (STATE_AFTER[kind]) this.turn(time, STATE_AFTER[kind], incarnation);
  }
}

export class Model {
  constructor() {
    this.offset = 0; // the clock of the program minus that of the browser
    this.clear();
  }

  /** Forget everything: another program answers. */
  clear() {
    this.status = null;
    this.rows = new Map(); // by path, parents first, in start order
    this.parents = new Set();
    this.lanes = new Map();
    this.events = [];
    this.seq = 0;
    this.version = 0; // of the events
  }

  /** The time of the program, in seconds since 1970. */
  now() {
    return Date.now() / 1000 + this.offset;
  }

  lane(path) {
    if (!this.lanes.has(path)) this.lanes.set(path, new Lane());
    return this.lanes.get(path);
  }

  /** Take events, oldest first. Those that it already has are left out. */
  takeEvents(events) {
    for (const event of events) {
      if (event.seq <= this.seq) continue;
      this.seq = event.seq;
      this.events.push(event);
      this.lane(event.path).take(event, this.events[0].time);
    }
    for (const old of this.events.splice(0, Math.max(0, this.events.length - EVENTS))) {
      const lane = this.lanes.get(old.path);
      if (lane && lane.events[0] === old) lane.events.shift();
    }
    this.version += 1;
  }

  /** Take a status: the rows of the table are its rows. A lane goes on from its row where the events do not lead further. */
  takeStatus(status) {
    this.offset = status.time - Date.now() / 1000;
    this.status = status;
    this.rows = new Map(status.nodes.map((row) => [row.path, row]));
    this.parents = new Set(status.nodes.map((row) => row.path.slice(0, Math.max(0, row.path.lastIndexOf("/")))));
    for (const row of status.nodes) {
      const lane = this.lane(row.path);
      const settled = lane.seq <= status.seq && this.seq >= status.seq;
      if (lane.segments.length === 0) {
        lane.guessed = lane.events.length === 0;
        lane.turn(row.since ?? status.time, row.state, row.incarnation);
      } else if (settled || lane.guessed) {
        lane.turn(Math.max(row.since ?? status.time, lane.segments.at(-1).from), row.state, row.incarnation);
      }
    }
    for (const [path, lane] of this.lanes) {
      if (!this.rows.has(path) && lane.events.length === 0) this.lanes.delete(path);
    }
  }

  /** How many nodes are in each state. */
  counts() {
    const found = new Map();
    for (const row of this.rows.values()) found.set(row.state, (found.get(row.state) ?? 0) + 1);
    return found;
  }
}
