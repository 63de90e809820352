// How the page writes times, paths and texts. Everything that comes from a program is put in as text, never as markup.

const HTML = document;
const SVG = "http://www.w3.org/2000/svg";

/** The element of the page with that id. */
export const the = (id) => HTML.getElementById(id);

/** A new HTML element with attributes and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = HTML.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A new SVG element with attributes; `text` becomes its text. */
export function draw(tag, attributes = {}, text = "") {
  const element = HTML.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
}

/** Sets the text of an element, and touches the document only if it differs. */
export function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets an attribute, and touches the document only if it differs; null takes it away. */
export function mark(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/** Shows or hides an element. */
export function show(element, shown) {
  if (element.hidden === shown) element.hidden = !shown;
}

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86400;

/** A number of seconds for a narrow column: `12 s`, `3 min`, `2 h 5 min`, `4 d 1 h`. */
export function span(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return `${Math.floor(whole / MINUTE)} min`;
  if (whole < DAY) return `${Math.floor(whole / HOUR)} h ${Math.floor((whole % HOUR) / MINUTE)} min`;
  return `${Math.floor(whole / DAY)} d ${Math.floor((whole % DAY) / HOUR)} h`;
}

/** A short time with its fraction: `< 1 ms`, `3 ms`, `1.20 s`, `12.4 s`, then as `span`. */
export function exactly(seconds) {
  if (seconds < 1) return `${Math.round(Math.max(0, seconds) * 1000) || "< 1"} ms`;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  return seconds < MINUTE ? `${seconds.toFixed(1)} s` : span(seconds);
}

const two = (number) => String(number).padStart(2, "0");

/** The local time of day: `22:31:05`, with milliseconds on request, and with the date if that is not today's. */
export function clock(seconds, milliseconds = false) {
  const date = new Date(seconds * 1000);
  const fraction = milliseconds ? `.${String(date.getMilliseconds()).padStart(3, "0")}` : "";
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}${fraction}`;
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

/** A number with separators, and a noun in its number: `1,021 nodes`. */
export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

/** The last part of a path. */
export const last = (path) => path.slice(path.lastIndexOf("/") + 1);

/** The path of the node above; empty for the root. */
export const above = (path) => path.slice(0, Math.max(0, path.lastIndexOf("/")));

/** A path as elements: each name is isolated, so that one written from right to left does not turn the others around. */
export function names(path) {
  return path.split("/").flatMap((name, index) => [...(index ? ["/"] : []), make("bdi", {}, name)]);
}

/** `what/PATH` as the address of a request. What UTF-8 cannot encode is sent as it is shown elsewhere. */
export const address = (what, path) => `${what}/${path.split("/").map(encoded).join("/")}`;

const encoded = (name) =>
  encodeURIComponent(name.replace(/\p{Surrogate}/gu, (half) => `\\u${half.charCodeAt(0).toString(16)}`));

/** An exception in one line. */
export const failure = (exc) => (exc.text ? `${exc.type}: ${exc.text}` : exc.type);

/** A text of the program amid words of this page: it cannot change the direction in which they are written. */
export function amid(text) {
  const visible = text.replace(/[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu, (char) => `\\u${char.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return /[\u0590-\u08ff\ufb1d-\ufefc]|[\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u.test(visible) ? `\u2068${visible}\u2069` : visible;
}

/** A decision in a few words: `db → Restart`; without a directive the reason why none was asked for. */
export function decision(decided) {
  const what = decided.directive ? `→ ${decided.directive}` : `not decided: ${decided.because}`;
  return decided.tag ? `${amid(decided.tag)} ${what}` : what;
}
