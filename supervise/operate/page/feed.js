// The connection to the program: its events as they come, and its status after them, at most once a second.

import { address } from "./words.js";

const PERIOD = 1000; // milliseconds between two requests for the status
const RETRY = 3000; // milliseconds until a connection that was refused is tried again
const QUEUE = 20_000; // events that wait to be read; a hidden tab reads once a second
const BUDGET = 8; // milliseconds of one frame in which events are read

/** What the program answers to a request that it does not carry out, in its own words. */
export class Refusal extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export class Feed {
  /** `onEvents(list)`, `onStatus(status)`, `onRestart()` if another program answers now, and `onChange()` after a change of `state` or `missed`. */
  constructor({ onEvents, onStatus, onRestart, onChange }) {
    Object.assign(this, { onEvents, onStatus, onRestart, onChange });
    this.token = null; // only here, and never stored
    this.state = "connecting";
    this.lostAt = null;
    this.missed = 0; // events that came while the connection was lost, and are no longer kept
    this.left = 0; // events that were no longer kept when the page was opened
    this.problem = null; // of the last request for the status
    this.pid = null;
    this.seq = 0; // of the last event that came
    this.queue = [];
    this.fetched = -Infinity;
    this.open();
    document.addEventListener("visibilitychange", () => this.wake());
  }

  open() {
    this.source = new EventSource(`events?after=${this.seq}`);
    this.source.onopen = () => this.change("live");
    this.source.onmessage = ({ data, lastEventId }) => {
      const seq = Number(lastEventId);
      if (seq <= this.seq) {
        // Another program answers here, and counts from 1. Its process may have the number of the one before, as in a container.
        this.onRestart();
        Object.assign(this, { queue: [], missed: 0, left: 0 });
      }
      this.seq = seq;
      this.queue.push(data);
      if (this.queue.length > QUEUE) this.lose(this.queue.splice(0, QUEUE / 2).length);
      this.wake();
    };
    this.source.addEventListener("missed", ({ data }) => {
      if (this.seq === 0) this.left = JSON.parse(data).missed;
      else this.lose(JSON.parse(data).missed);
    });
    this.source.onerror = () => {
      this.change("reconnecting");
      // A browser tries again by itself unless it was answered with an error.
      if (this.source.readyState === EventSource.CLOSED) setTimeout(() => this.open(), RETRY);
    };
  }

  /** Begin from the first event that is kept: another program answers at this address. */
  reopen() {
    this.source.close();
    Object.assign(this, { seq: 0, queue: [], missed: 0, left: 0 });
    this.open();
  }

  lose(number) {
    this.missed += number;
    this.onChange();
  }

  change(state) {
    if (state === "reconnecting") this.lostAt ??= Date.now();
    if (state === "live") {
      this.lostAt = null;
      this.ask();
    }
    this.state = state;
    this.onChange();
  }

  /** Read what waits in the next frame; a hidden tab has no frames. */
  wake() {
    if (this.queue.length === 0) return;
    if (document.hidden) this.timer ??= setTimeout(() => this.read(), PERIOD);
    else this.frame ??= requestAnimationFrame(() => this.read());
  }

  read() {
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
    this.timer = this.frame = undefined;
    const events = [];
    const until = performance.now() + BUDGET;
    let index = 0;
    while (index < this.queue.length && (document.hidden || performance.now() < until)) {
      const event = understood(this.queue[index++]);
      if (event) events.push(event);
    }
    this.queue.splice(0, index);
    this.onEvents(events);
    this.ask();
    this.wake();
  }

  /** Fetch the status now, or when a second has passed since the last time. */
  ask() {
    if (this.asked) return;
    this.asked = true;
    setTimeout(() => this.fetchStatus(), Math.max(0, this.fetched + PERIOD - Date.now()));
  }

  async fetchStatus() {
    if (this.busy) {
      this.again = true;
      return;
    }
    const { seq } = this;
    this.fetched = Date.now();
    this.busy = true;
    this.asked = false;
    try {
      const status = await (await this.send("status", {})).json();
      this.problem = null;
      if (this.pid !== null && (status.pid !== this.pid || status.seq < seq)) {
        this.onRestart();
        this.reopen();
      }
      this.pid = status.pid;
      this.onStatus(status);
    } catch (error) {
      this.problem = error.message;
      this.onChange();
      if (this.state === "live") setTimeout(() => this.ask(), RETRY);
    } finally {
      this.busy = false;
      if (this.again) {
        this.again = this.asked = false;
        this.ask();
      }
    }
  }

  /** A text about a node: `why` or `stack`. */
  async text(what, path) {
    return (await this.send(address(what, path), {})).text();
  }

  /** An event with its traceback or stack, which the stream of a port leaves out; null if it is no longer kept. */
  async whole(seq) {
    const answer = await this.send(`events?after=${seq - 1}&follow=0`, {});
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const wanted = new RegExp(`^id: ${seq}\ndata: (.*)\n\n`, "m");
    let text = "";
    let found = null;
    while (!found) {
      const { value, done } = await reader.read();
      if (done) break;
      text += value;
      found = wanted.exec(text);
    }
    reader.cancel();
    return found && understood(found[1]);
  }

  /** Restart, stop or start a node; or with `dry` only say which steps that would take. */
  async act(what, path, { reason, who, dry }) {
    const body = JSON.stringify({ reason, who });
    const headers = { "Content-Type": "application/json" };
    const answer = await this.send(address(what, path) + (dry ? "?dry_run=1" : ""), { method: "POST", body, headers });
    return answer.json();
  }

  async send(what, options) {
    const headers = { ...options.headers, ...(this.token ? { Authorization: `Bearer ${this.token}` } : {}) };
    const answer = await fetch(what, { ...options, headers, cache: "no-store" });
    if (answer.ok) return answer;
    throw new Refusal(answer.status, await answer.text().then(sentence, () => "") || `The program answered ${answer.status}.`);
  }
}

function understood(line) {
  try {
    return JSON.parse(line);
  } catch {
    return null;
  }
}

function sentence(text) {
  return understood(text)?.error ?? text;
}
