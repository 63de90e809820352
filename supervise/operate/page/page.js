// The page: it joins the connection, what is known, and the views, and decides when they are painted.

import { ActBox, tokenBox } from "./act.js";
import { Feed } from "./feed.js";
import { Model } from "./model.js";
import { Story } from "./story.js";
import { Tail } from "./tail.js";
import { Timeline } from "./timeline.js";
import { Tree } from "./tree.js";
import { amid, clock, count, make, mark, put, show, the } from "./words.js";

const APART = 250; // milliseconds between two paintings, however many events come
const TREE = 500; // milliseconds between two paintings of tree and timeline, unless a new status has come

let waiting;
let painted = 0;
let treeAt = -Infinity;

const model = new Model();
const feed = new Feed({
  onEvents(events) {
    model.takeEvents(events);
    later();
  },
  onStatus(status) {
    model.takeStatus(status);
    if (feed.token !== null && !status.acts) say("The program does not accept this token.");
    treeAt = -Infinity;
    later();
  },
  onRestart() {
    model.clear();
    say("Another run of the program answers here now: what was shown of the last one is gone.");
  },
  onChange: later,
});
const tree = new Tree(model, choose);
const timeline = new Timeline(model, tree, choose);
const tail = new Tail(model, feed, choose);
const story = new Story(model, feed, () => {
  tree.chosen = null;
  paint(true);
});
const acts = new ActBox(feed, (text) => {
  say(text);
  feed.ask();
});
tokenBox(feed, (problem) => {
  say(problem);
  feed.ask();
  paint();
});

function choose(path) {
  tree.chosen = path;
  tree.turnTo(path);
  story.open(path);
  paint(true);
}

function say(text) {
  put(the("notice"), text);
  show(the("notice"), text !== "");
}

/** Paint soon: once, for all that happens until then. */
function later() {
  waiting ??= setTimeout(() => requestAnimationFrame(() => paint()), Math.max(0, painted + APART - performance.now()));
}

/** Paint now; `whole` also what changes on its own more seldom. */
function paint(whole = false) {
  clearTimeout(waiting);
  waiting = undefined;
  const now = performance.now();
  painted = now;
  header();
  if (whole || now - treeAt >= TREE) {
    treeAt = now;
    tree.paint();
    timeline.paint();
  }
  tail.paint();
  story.paint();
}

function header() {
  const { status } = model;
  put(the("connection"), connection());
  mark(the("connection"), "data-state", feed.state === "live" && !feed.problem ? "live" : "lost");
  mark(document.body, "class", feed.state === "live" ? "" : "stale");
  if (!status) return;
  put(the("age"), `status of ${clock(status.time)}`);
  put(the("name"), status.name);
  put(the("pid"), `pid ${status.pid}`);
  document.title = `${status.name} · supervise`;
  put(the("ready"), readiness(status.waits_for));
  mark(the("ready"), "data-ready", String(status.waits_for.length === 0));
  const counts = model.counts();
  const states = [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a));
  if (the("counts").textContent !== states.map((state) => `${counts.get(state)} ${state}`).join("")) {
    the("counts").replaceChildren(...states.map((state) => make("span", { class: "state", "data-state": state }, `${counts.get(state)} ${state}`)));
  }
  put(the("token-open"), feed.token === null ? "Enter token" : "Token entered");
  const row = model.rows.get(story.path);
  show(the("acts"), Boolean(row && (status.acts || feed.token !== null)));
  if (!row) return;
  const down = row.state === "down" || row.state === "condemned";
  const starts = down || row.state === "restarting"; // a backoff is cut short
  for (const button of the("acts").children) {
    button.disabled = { restart: false, stop: down, start: !starts }[button.dataset.do];
  }
}

function connection() {
  const missed = feed.missed ? ` · ${count(feed.missed, "event")} missed` : "";
  if (feed.state === "reconnecting") return `reconnecting since ${clock(feed.lostAt / 1000)}${missed}`;
  if (feed.problem) return `live, but no status: ${feed.problem}${missed}`;
  return `${feed.state}${missed}`;
}

function readiness(waits) {
  if (waits.length === 0) return "ready";
  const first = waits.slice(0, 3).map(({ path, state, why }) => `${amid(path)} (${amid(why || state)})`);
  const more = waits.length > first.length ? ` and ${waits.length - first.length} more` : "";
  return `not ready: waits for ${first.join(", ")}${more}`;
}

the("refresh").addEventListener("click", () => feed.ask());

the("acts").addEventListener("click", (event) => {
  const what = event.target.dataset.do;
  if (what && story.path !== null) acts.open(what, story.path);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea")) return;
  if (event.key === "Escape" && story.path !== null) story.close();
  if (event.key === "/") {
    event.preventDefault();
    the("filter").focus();
  } else if (event.key === "!") the("only-trouble").click();
});

put(the("zone"), Intl.DateTimeFormat().resolvedOptions().timeZone);
// What counts in seconds goes on while nothing happens; a hidden tab need not be painted.
setInterval(() => document.hidden || later(), 1000);
