// The story of one node: its row in full, why it is as it is, its stack on request, and its events.

import { restarts } from "./tree.js";
import { amid, clock, count, decision, exactly, failure, make, names, put, show, span, the } from "./words.js";

const MOST = 100; // events
const SECRET = "Stacks and tracebacks are shown only to those who have the program’s token.";
const MORE = new Set(["Failed", "StopError", "Overdue", "StartOverdue"]); // have a traceback or a stack

export class Story {
  constructor(model, feed, onClose) {
    Object.assign(this, { model, feed, onClose });
    this.panel = the("story");
    this.path = null;
    this.items = new Map(); // by the event that each shows: another run counts from 1 again
    the("story-close").addEventListener("click", () => this.close());
    the("stack-show").addEventListener("click", () => this.fetchStack());
  }

  open(path) {
    if (!this.panel.contains(document.activeElement)) this.before = document.activeElement; // the focus goes back there
    if (path !== this.path) {
      this.path = path;
      this.asked = null; // what was known of it when `why` was fetched last
      this.items.clear();
      the("story-title").replaceChildren(...names(path));
      the("facts").replaceChildren();
      the("story-events").replaceChildren();
      put(the("why"), "");
      put(the("why-at"), "");
      show(the("stack"), false);
    }
    show(this.panel, true);
    this.paint();
    this.panel.scrollTop = 0;
    this.panel.focus({ preventScroll: true });
  }

  close() {
    this.path = null;
    show(this.panel, false);
    if (this.before?.isConnected) this.before.focus({ preventScroll: true });
    this.onClose();
  }

  paint() {
    if (this.path === null) return;
    const row = this.model.rows.get(this.path);
    this.paintFacts(row);
    this.paintEvents();
    const key = JSON.stringify([this.model.lanes.get(this.path)?.seq, row?.state, row?.incarnation, row?.restarts, row?.decision]);
    if (this.asked !== key) {
      this.asked = key;
      this.fetchWhy();
    }
  }

  paintFacts(row) {
    const list = the("facts");
    const facts = row ? factsOf(row, this.model.now()) : [["State", "It is not in the tree any more."]];
    if (list.children.length !== 2 * facts.length || facts.some(([term], index) => list.children[2 * index].textContent !== term)) {
      list.replaceChildren(...facts.flatMap(([term]) => [make("dt", {}, term), make("dd", {}, make("bdi"))]));
    }
    facts.forEach(([, text], index) => put(list.children[2 * index + 1].firstChild, text));
  }

  paintEvents() {
    const events = (this.model.lanes.get(this.path)?.events ?? []).slice(-MOST);
    const list = the("story-events");
    const kept = new Set(events);
    for (const [event, item] of this.items) {
      if (kept.has(event)) continue;
      item.remove();
      this.items.delete(event);
    }
    for (const event of events) {
      if (this.items.has(event)) continue;
      const item = eventItem(event, (seq) => this.fetchMore(seq));
      this.items.set(event, item);
      list.prepend(item);
    }
    show(the("no-story-events"), events.length === 0);
  }

  async fetchWhy() {
    const text = await this.fetchText("why");
    if (text === null) return;
    put(the("why"), text.trim());
    put(the("why-at"), `as of ${clock(this.model.now())}`);
  }

  async fetchStack() {
    const text = await this.fetchText("stack");
    if (text === null) return;
    put(the("stack"), text.trim() || "It has no task now.");
    show(the("stack"), true);
  }

  /** The traceback or stack of an event that came without. */
  async fetchMore(seq) {
    if (this.feed.token === null) return SECRET;
    const event = await this.feed.whole(seq).catch((error) => ({ stack: error.message }));
    return event ? (moreOf(event) ?? SECRET) : "It is no longer kept.";
  }

  /** A text about this node; an error in its words; null if another node has been chosen meanwhile. */
  async fetchText(what) {
    const { path } = this;
    const text = await this.feed.text(what, path).catch(({ status, message }) => (status === 401 || status === 403 ? SECRET : message));
    return path === this.path ? text : null;
  }
}

function factsOf(row, now) {
  const facts = [
    ["State", row.since === null ? row.state : `${row.state} for ${span(now - row.since)}, since ${clock(row.since)}`],
    ["Kind", [row.kind, row.restart, row.strategy].filter(Boolean).join(", ")],
    ["Incarnation", String(row.incarnation)],
    ["Restarts", row.limit ? `${restarts(row)}, limit ${row.limit}` : restarts(row)],
    ["Backoff", row.due === null ? "" : `starts in ${exactly(row.due - now)}`],
    ["Ready", row.ready_at === null ? "" : `last at ${clock(row.ready_at)}`],
    ["Mailbox", row.mailbox === null ? "" : `${row.mailbox.toLocaleString("en")} waiting, ${(row.handled ?? 0).toLocaleString("en")} handled`],
    ["Front", row.front ?? ""],
    ["In all", row.failures_total ? `${count(row.failures_total, "failure")}, ${count(row.restarts_total, "restart")}` : ""],
    ["Last failure", row.failure ? failure(row.failure) : ""],
  ];
  if (row.decision) facts.push(["Decision", `${decision(row.decision)}, by ${amid(row.decision.by)}, at ${clock(row.decision.at)}`]);
  return facts.filter(([, text]) => text);
}

const moreOf = (event) => event.exc?.traceback ?? event.stack;

/** One event: a line, and below it, when it is opened, its traceback or stack; `fetchMore` gets what did not come with it. */
function eventItem(event, fetchMore) {
  const line = [make("time", {}, clock(event.time, true)), make("span", { class: "number" }, `#${event.incarnation}`), make("bdi", {}, event.text ?? event.kind)];
  const item = make("li", { "data-kind": event.kind });
  if (!MORE.has(event.kind)) {
    item.append(make("div", { class: "line" }, ...line));
    return item;
  }
  const more = make("pre", { tabindex: "0" }, moreOf(event) ?? "");
  const details = make("details", {}, make("summary", {}, ...line), more);
  details.addEventListener("toggle", async () => {
    if (details.open && moreOf(event) === undefined) put(more, await fetchMore(event.seq));
  });
  item.append(details);
  return item;
}
