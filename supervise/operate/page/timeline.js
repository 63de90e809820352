// The timeline: a lane a node, its states as bars, its failures as marks with the decision.

import { trouble } from "./model.js";
import { amid, clock, count, decision, draw, exactly, make, mark, names, put, the } from "./words.js";

const MOST = 20; // lanes
const HEIGHT = 20; // of a lane, in pixels
const LETTER = 5.7; // pixels that a letter of a label takes, at most
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const STATES = ["starting", "up", "failed", "restarting", "stopping", "releasing", "condemned", "down"];

export class Timeline {
  constructor(model, tree, onChoose) {
    Object.assign(this, { model, tree, onChoose });
    this.list = the("lanes");
    this.axis = the("axis");
    this.lanes = new Map(); // by path: {item, picture}
    the("legend").append(...STATES.map((state) => make("li", { class: "state", "data-state": state }, state)));
    the("zoom").addEventListener("change", () => this.paint());
    this.list.addEventListener("click", (event) => {
      const item = event.target.closest("li");
      if (item) this.onChoose(item.path);
    });
    new ResizeObserver(() => this.paint()).observe(this.list);
  }

  /** The paths of the lanes, in the order of the tree; if they are too many, those in most trouble. */
  choose(now) {
    const { rows, lanes } = this.model;
    const paths = [...this.tree.matching];
    if (paths.length <= MOST) return paths;
    const rank = new Map(
      paths.map((path) => [path, [trouble(rows.get(path), now), lanes.get(path)?.marks.at(-1)?.time ?? 0]]),
    );
    const worst = paths.toSorted((a, b) => rank.get(b)[0] - rank.get(a)[0] || rank.get(b)[1] - rank.get(a)[1]);
    const chosen = new Set(worst.slice(0, MOST));
    return paths.filter((path) => chosen.has(path));
  }

  paint() {
    const now = this.model.now();
    const paths = this.choose(now);
    const total = this.tree.matching.size;
    put(the("lanes-shown"), total > paths.length ? `${paths.length} of ${count(total, "node")}: trouble first` : "");
    const zoom = Number(the("zoom").querySelector(":checked").value);
    const from = Math.min(now - 10, Math.max(zoom ? now - zoom : -Infinity, this.begin(paths)));
    let next = this.list.firstChild;
    const wanted = new Set(paths);
    for (const path of paths) {
      const { item } = this.lanes.get(path) ?? this.add(path);
      while (next && next !== item && !wanted.has(next.path)) next = this.drop(next);
      if (item === next) next = next.nextSibling;
      else this.list.insertBefore(item, next);
    }
    while (next) next = this.drop(next);
    const width = this.list.firstChild?.lastChild.clientWidth ?? 0;
    if (!width) return this.axis.replaceChildren();
    const x = (time) => Math.round(((time - from) / (now - from)) * width * 10) / 10;
    for (const path of paths) this.fill(path, from, now, width, x);
    this.scale(from, now, width, x);
  }

  /** The time of the first event that is kept; if there are none, the earliest time in a row. */
  begin(paths) {
    return this.model.events[0]?.time ?? Math.min(...paths.map((path) => this.model.lane(path).segments[0]?.from ?? Infinity));
  }

  add(path) {
    const picture = draw("svg", { role: "img", height: String(HEIGHT) });
    const item = make("li", {}, make("button", { type: "button", title: path }, make("bdi", {}, ...names(path))), picture);
    item.path = path;
    this.lanes.set(path, { item, picture });
    return this.lanes.get(path);
  }

  drop(item) {
    const next = item.nextSibling;
    this.lanes.delete(item.path);
    item.remove();
    return next;
  }

  fill(path, from, now, width, x) {
    const { picture } = this.lanes.get(path);
    const { segments, marks } = this.model.lane(path);
    const parts = [];
    const labels = [];
    let drawn = -1; // the right end of the last bar: what is thinner than a pixel is drawn once
    let life = 0;
    const ticks = []; // where an incarnation begins
    let ticked = -2;
    segments.forEach((segment, index) => {
      const until = segments[index + 1]?.from ?? now;
      const begins = segment.incarnation !== life;
      life = segment.incarnation;
      if (until < from) return;
      const [left, right] = [Math.max(0, x(segment.from)), Math.max(0, x(until))];
      if (begins && segment.from >= from) {
        labels.push({ at: left, text: `#${segment.incarnation}`, class: "life" });
        if (left >= ticked + 2) {
          ticked = left;
          ticks.push(draw("rect", { x: left, y: 3, width: 1, height: HEIGHT - 6, class: "life" }));
        }
      }
      if (right <= drawn) return;
      drawn = Math.max(left + 1, right);
      const bar = draw("rect", { x: left, y: 3, width: Math.max(1, right - left), height: HEIGHT - 6, "data-state": segment.state });
      const duration = exactly(until - segment.from);
      bar.append(draw("title", {}, `${segment.state}, incarnation ${segment.incarnation}, since ${clock(segment.from, true)}, ${duration}`));
      parts.push(bar);
    });
    parts.push(...ticks);
    let marked = -2;
    let seen = 0;
    for (const each of marks) {
      if (each.time < from) continue;
      seen += 1;
      const at = x(each.time);
      const text = label(each);
      labels.push({ at, text, class: each.kind });
      if (at - marked < 2) continue;
      marked = at;
      const tick = draw("rect", { x: at - 1, y: 1, width: 2, height: HEIGHT - 2, class: each.kind });
      tick.append(draw("title", {}, `${clock(each.time, true)} ${text}\n${each.text.slice(0, 500)}`));
      parts.push(tick);
    }
    picture.replaceChildren(...parts, ...written(labels, width));
    mark(picture, "width", String(width));
    const end = segments.at(-1);
    const state = end ? `${end.state} since ${clock(end.from)}, incarnation ${end.incarnation}` : "not known";
    mark(picture, "aria-label", `${path}: ${state}; ${count(seen, "failure")} in the time shown`);
  }

  scale(from, now, width, x) {
    const apart = Math.max(80, width / 10);
    const step = STEPS.find((each) => (each / (now - from)) * width >= apart) ?? Math.ceil((now - from) / 86400 / 5) * 86400;
    // Whole hours of the local time, not of UTC.
    const shift = new Date(now * 1000).getTimezoneOffset() * 60;
    const parts = [];
    for (let time = Math.ceil((from - shift) / step) * step + shift; time <= now; time += step) {
      const at = x(time);
      parts.push(draw("line", { x1: at, x2: at, y1: 0, y2: 4 }));
      const anchor = at < 24 ? "start" : at > width - 24 ? "end" : "middle";
      const text = clock(time);
      parts.push(draw("text", { x: at, y: 15, "text-anchor": anchor }, step < 60 ? text : text.slice(0, -3)));
    }
    mark(this.axis, "width", String(width));
    this.axis.replaceChildren(...parts);
  }
}

/** A failure in a few words: its tag or type, the directive, and which incarnation was up how long after it. */
function label(each) {
  if (each.label) return each.label;
  const { decided, recovered } = each;
  const what = decided ? `${decided.tag ? "" : `${amid(each.type)} `}${decision(decided)}` : amid(each.type);
  if (recovered === null) return what;
  const again = recovered.incarnation === each.incarnation ? "up" : `#${recovered.incarnation}`;
  return `${what}, ${again} after ${exactly(recovered.seconds)}`;
}

/** The labels that have room on the right of their marks, or else on the left, whole or up to their first comma. */
function written(labels, width) {
  labels.sort((a, b) => a.at - b.at || (a.class === "life" ? 1 : -1));
  let until = 0; // the right end of the label of the last failure
  const wanted = labels.filter((each) => {
    if (each.class === "life") return each.at >= until; // else the label of the failure names it
    until = each.at + LETTER * each.text.length + 8;
    return true;
  });
  const parts = [];
  let free = 0; // where the room on the left begins
  wanted.forEach(({ at, text, class: kind }, index) => {
    const next = wanted[index + 1]?.at ?? width;
    const before = free;
    if (kind !== "life") free = at; // no label crosses another mark
    for (const each of new Set([text, text.split(", ")[0]])) {
      const long = LETTER * each.length + 8;
      const right = at + long < next;
      if (!right && (kind === "life" || at - long <= before)) continue;
      const place = right ? { x: at + 4 } : { x: at - 4, "text-anchor": "end" };
      parts.push(draw("text", { ...place, y: HEIGHT - 6, class: kind }, each));
      if (right) free = at + long;
      break;
    }
  });
  return parts;
}
