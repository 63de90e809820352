// Restart, stop and start by hand: the token, which is kept in this module's memory alone, and the dialog of an act.

import { amid, count, make, names, put, show, the } from "./words.js";

/** The dialog that takes the token. `onToken` follows each change, with what is wrong with it, or an empty text. */
export function tokenBox(feed, onToken) {
  const box = the("token-box");
  the("token-open").addEventListener("click", () => {
    the("token").value = "";
    box.returnValue = "";
    box.showModal();
  });
  box.addEventListener("close", () => {
    const entered = the("token").value.trim();
    the("token").value = "";
    if (box.returnValue === "take" && entered) {
      // No header can carry other letters, and the error that a browser raises for them would not name the token.
      if (/[^!-~]/.test(entered)) return onToken("A token has letters, digits and signs of ASCII only, and no spaces.");
      feed.token = entered;
    } else if (box.returnValue === "forget") feed.token = null;
    else return;
    onToken("");
  });
}

/** The dialog of an act: it shows what the program would do, asks for a reason, and then does it. */
export class ActBox {
  constructor(feed, onDone) {
    Object.assign(this, { feed, onDone });
    this.box = the("act-box");
    this.box.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.carryOut();
    });
    the("act-cancel").addEventListener("click", () => this.box.close());
    this.box.addEventListener("close", () => (this.path = null));
  }

  async open(what, path) {
    Object.assign(this, { what, path });
    const verb = what[0].toUpperCase() + what.slice(1);
    the("act-title").replaceChildren(`${verb} `, ...names(path));
    put(the("act-do"), verb);
    put(the("act-plan"), "Asking the program what that takes …");
    the("act-steps").replaceChildren();
    the("act-reason").value = "";
    the("act-do").disabled = true;
    show(the("act-error"), false);
    this.box.showModal();
    the("act-reason").focus();
    try {
      const { steps } = await this.feed.act(what, path, { reason: "a dry run", who: "", dry: true });
      if (this.path !== path || this.what !== what) return;
      put(the("act-plan"), steps.length ? `This takes ${count(steps.length, "step")}, in this order:` : "This takes no step.");
      the("act-steps").replaceChildren(...steps.map((step) => make("li", {}, make("b", {}, step.do), " ", make("bdi", {}, ...names(step.path)))));
      the("act-do").disabled = false;
    } catch (error) {
      if (this.path !== path || this.what !== what) return;
      put(the("act-plan"), "");
      this.refuse(error);
    }
  }

  async carryOut() {
    const { what, path } = this;
    the("act-do").disabled = true;
    show(the("act-error"), false);
    try {
      const { steps } = await this.feed.act(what, path, { reason: the("act-reason").value.trim(), who: the("act-who").value.trim(), dry: false });
      this.onDone(`${what} of ${amid(path)}: done in ${count(steps.length, "step")}.`);
      if (this.path === path) this.box.close();
    } catch (error) {
      if (this.path !== path) return this.onDone(`${what} of ${amid(path)}: ${error.message}`);
      this.refuse(error);
      the("act-do").disabled = false;
    }
  }

  refuse(error) {
    put(the("act-error"), error.message);
    show(the("act-error"), true);
  }
}
