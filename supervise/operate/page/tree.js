// The tree as an indented table: one row a node, changed in place.

import { above, count, decision, failure, last, make, mark, put, show, span, the } from "./words.js";
import { trouble } from "./model.js";

const CELLS = ["node", "state", "incarnation", "restarts", "due", "mailbox", "since", "failure"];
const NUMBERS = new Set(["incarnation", "restarts", "due", "mailbox", "since"]);
const DEEPEST = 12; // levels that are indented

/** The restarts that its limit counts, of those that it allows: `1/3`. */
export function restarts(row) {
  if (row.allowed === null || row.allowed === undefined) return row.restarts ? String(row.restarts) : "";
  return `${row.restarts}/${row.allowed}`;
}

export class Tree {
  constructor(model, onChoose) {
    this.model = model;
    this.onChoose = onChoose;
    this.body = the("tree").tBodies[0];
    this.lines = new Map(); // by path
    this.collapsed = new Set();
    this.chosen = null; // the path whose story is open
    this.current = null; // the path of the row that Tab leads to
    this.matching = new Set();
    this.body.addEventListener("click", (event) => this.click(event));
    this.body.addEventListener("keydown", (event) => this.key(event));
    the("collapse").addEventListener("click", () => this.fold(true));
    the("expand").addEventListener("click", () => this.fold(false));
    the("filter").addEventListener("input", () => this.paint());
    the("only-trouble").addEventListener("change", () => this.paint());
  }

  /** The paths that filter and "only trouble" leave, without those that are shown only as ancestors. */
  choose() {
    const words = the("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const only = the("only-trouble").checked;
    const now = this.model.now();
    this.matching.clear();
    for (const row of this.model.rows.values()) {
      if (only && !trouble(row, now)) continue;
      if (words.length) {
        const text = `${row.path} ${row.state} ${row.failure ? failure(row.failure) : ""} ${row.decision?.tag ?? ""}`.toLowerCase();
        if (!words.every((word) => text.includes(word))) continue;
      }
      this.matching.add(row.path);
    }
    this.filtered = only || words.length > 0;
    return this.matching;
  }

  paint() {
    const { rows } = this.model;
    const now = this.model.now();
    const matching = this.choose();
    const visible = new Set();
    for (const path of matching) {
      for (let each = path; each && !visible.has(each); each = above(each)) visible.add(each);
    }
    let next = this.body.firstChild;
    const root = this.model.rows.keys().next().value ?? "";
    const base = root.split("/").length;
    for (const row of rows.values()) {
      const line = this.lines.get(row.path) ?? this.add(row, row.path.split("/").length - base);
      if (line.element === next) next = next.nextSibling;
      else this.body.insertBefore(line.element, next);
      const parent = this.lines.get(above(row.path));
      // A filter opens what is collapsed: what it finds must be seen.
      line.open = this.filtered || !this.collapsed.has(row.path);
      line.visible = visible.has(row.path) && (!parent || (parent.visible && parent.open));
      show(line.element, line.visible);
      if (line.visible) this.fill(line, row, now, matching.has(row.path));
    }
    while (next) {
      const gone = next;
      next = next.nextSibling;
      this.lines.delete(gone.path);
      gone.remove();
    }
    if (!this.lines.get(this.current)?.visible) this.turnTo(this.visibleRows()[0]?.path ?? null);
    show(the("no-rows"), matching.size === 0 && rows.size > 0);
    const total = count(rows.size, "node");
    put(the("shown"), this.filtered ? `${matching.size.toLocaleString("en")} of ${total}` : total);
  }

  add(row, level) {
    const element = make("tr", { role: "row", tabindex: "-1", "aria-level": String(level + 1) });
    const line = { element, cells: {} };
    for (const name of CELLS) {
      const cell = make("td", { role: "gridcell", class: `c-${name}${NUMBERS.has(name) ? " number" : ""}` });
      line.cells[name] = cell;
      element.append(cell);
    }
    line.twist = make("span", { class: "twist", "aria-hidden": "true" });
    const name = make("bdi", { class: "name" }, last(row.path));
    line.cells.node.append(line.twist, name);
    line.cells.node.title = row.path;
    element.style.setProperty("--level", String(Math.min(level, DEEPEST)));
    line.state = make("span", { class: "state" });
    line.cells.state.append(line.state);
    line.failure = make("bdi", { class: "what" });
    line.decision = make("bdi", { class: "dim decision" });
    line.cells.failure.append(make("div", {}, line.failure, line.decision));
    element.path = row.path;
    this.lines.set(row.path, line);
    return line;
  }

  fill(line, row, now, matches) {
    const { element, cells } = line;
    const inner = this.model.parents.has(row.path);
    mark(element, "aria-expanded", inner ? String(line.open) : null);
    mark(element, "aria-selected", String(row.path === this.chosen));
    element.classList.toggle("context", !matches);
    put(line.twist, inner ? (line.open ? "▾" : "▸") : "");
    put(line.state, row.state);
    mark(line.state, "data-state", row.state);
    mark(line.state, "data-due", row.due === null ? null : span(Math.ceil(row.due - now)));
    put(cells.incarnation, row.incarnation ? String(row.incarnation) : "");
    put(cells.restarts, restarts(row));
    mark(cells.restarts, "title", row.limit ? `limit ${row.limit}` : null);
    cells.restarts.classList.toggle("dim", row.restarts === 0);
    cells.restarts.classList.toggle("full", row.restarts > 0 && row.restarts === row.allowed);
    put(cells.due, row.due === null ? "" : span(Math.ceil(row.due - now)));
    put(cells.mailbox, row.mailbox === null ? "" : row.mailbox.toLocaleString("en"));
    put(cells.since, row.since === null || !row.incarnation ? "" : span(now - row.since));
    const text = row.failure ? failure(row.failure) : "";
    put(line.failure, row.failures_total > 1 && text ? `${row.failures_total}× ${text}` : text);
    mark(line.failure, "title", text ? text.slice(0, 2000) : null);
    put(line.decision, row.decision ? decision(row.decision) : "");
    show(cells.failure.firstChild, Boolean(text || row.decision));
  }

  visibleRows() {
    return [...this.body.children].filter((element) => !element.hidden);
  }

  fold(collapse) {
    this.collapsed = new Set(collapse ? this.model.parents : []);
    this.collapsed.delete(this.model.rows.keys().next().value); // the root stays open
    this.paint();
  }

  toggle(path, collapse) {
    if (collapse) this.collapsed.add(path);
    else this.collapsed.delete(path);
    this.paint();
  }

  turnTo(path, focus = false) {
    const before = this.lines.get(this.current);
    if (before) before.element.tabIndex = -1;
    this.current = path;
    const line = this.lines.get(path);
    if (!line) return;
    line.element.tabIndex = 0;
    if (focus) line.element.focus();
  }

  click(event) {
    const element = event.target.closest("tr");
    if (!element) return;
    this.turnTo(element.path);
    if (event.target.closest(".twist") && this.model.parents.has(element.path)) {
      this.toggle(element.path, !this.collapsed.has(element.path));
    } else this.onChoose(element.path);
  }

  key(event) {
    const element = event.target.closest("tr");
    if (!element || event.ctrlKey || event.altKey || event.metaKey) return;
    const visible = this.visibleRows();
    const at = visible.indexOf(element);
    const inner = this.model.parents.has(element.path);
    const open = this.lines.get(element.path).open;
    const to = (index) => this.turnTo(visible[Math.min(visible.length - 1, Math.max(0, index))].path, true);
    const keys = {
      ArrowDown: () => to(at + 1),
      ArrowUp: () => to(at - 1),
      Home: () => to(0),
      End: () => to(visible.length - 1),
      PageDown: () => to(at + 10),
      PageUp: () => to(at - 10),
      Enter: () => this.onChoose(element.path),
      ArrowLeft: () => (inner && open ? this.toggle(element.path, true) : this.turnTo(above(element.path) || element.path, true)),
      ArrowRight: () => (inner && !open ? this.toggle(element.path, false) : to(at + (inner ? 1 : 0))),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  }
}
