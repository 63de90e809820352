// The last events, newest first, in a table of a fixed number of rows that are filled anew.

import { clock, count, make, mark, names, put, show, the } from "./words.js";

const MOST = 200; // rows

const KINDS = {
  failures: new Set(["Failed", "Decided", "StartFailed", "StopError", "BackingOff", "Resumed", "SinkFailed"]),
  starts: new Set(["Starting", "Ready", "Ignored", "Returned", "Stopping", "Stopped"]),
  overdue: new Set(["StartOverdue", "Overdue"]),
};

export class Tail {
  constructor(model, feed, onChoose) {
    Object.assign(this, { model, feed });
    this.body = the("events").tBodies[0];
    this.box = the("events-box");
    this.lines = [];
    this.shownTo = 0; // the number of the newest event in the table
    const again = () => this.paint(true);
    the("events-filter").addEventListener("input", again);
    the("events-kinds").addEventListener("change", again);
    the("newer").addEventListener("click", () => {
      this.box.scrollTop = 0;
      this.paint(true);
    });
    this.box.addEventListener("scroll", () => this.box.scrollTop === 0 && this.paint());
    this.body.addEventListener("click", (event) => {
      const path = event.target.closest("button")?.path;
      if (path) onChoose(path);
    });
  }

  /** The newest matching events, at most `MOST`. */
  matching() {
    const words = the("events-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const kinds = KINDS[the("events-kinds").value];
    const found = [];
    for (let index = this.model.events.length - 1; index >= 0 && found.length < MOST; index--) {
      const event = this.model.events[index];
      if (kinds && !kinds.has(event.kind)) continue;
      if (words.length) {
        const text = `${event.path} ${event.text ?? event.kind}`.toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
      }
      found.push(event);
    }
    return found;
  }

  /** Who reads further down keeps the place: then newer events are only counted. */
  paint(always = false) {
    const newer = this.model.seq - this.shownTo;
    const held = !always && this.box.scrollTop > 0 && newer >= 0;
    show(the("newer"), held && newer > 0);
    if (held) {
      if (newer > 0) put(the("newer"), `↑ ${newer.toLocaleString("en")} newer`);
      return;
    }
    const found = this.matching();
    this.shownTo = this.model.seq;
    while (this.lines.length < found.length) this.add();
    this.lines.forEach((line, index) => {
      show(line.row, index < found.length);
      if (index < found.length) fill(line, found[index]);
    });
    show(the("no-events"), found.length === 0);
    const left = this.feed.left ? `, ${this.feed.left.toLocaleString("en")} before them are no longer kept` : "";
    put(the("events-shown"), `${found.length === MOST ? `the last ${MOST}` : count(found.length, "event")} of ${this.model.events.length.toLocaleString("en")}${left}`);
  }

  add() {
    const [time, node, incarnation, text] = ["e-time", "e-node", "e-incarnation number", "e-text"].map((name) => make("td", { role: "cell", class: name }));
    const button = make("button", { type: "button", class: "link" });
    const words = make("bdi");
    node.append(button);
    text.append(words);
    const row = make("tr", { role: "row" }, time, node, incarnation, text);
    this.body.append(row);
    this.lines.push({ row, time, button, incarnation, words, seq: 0 });
  }
}

function fill(line, event) {
  if (line.event === event) return;
  line.event = event;
  put(line.time, clock(event.time, true));
  if (line.button.path !== event.path) {
    line.button.replaceChildren(...names(event.path));
    line.button.path = line.button.title = event.path;
  }
  put(line.incarnation, String(event.incarnation));
  put(line.words, event.text ?? event.kind);
  mark(line.row, "data-kind", event.kind);
}
