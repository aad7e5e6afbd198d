// The conversation as a person reads it: one entry for each item, in the order of the items.

export class Log {
  #list;
  #entries = new Map();

  constructor(list) {
    this.#list = list;
  }

  /** Whether anything was said. */
  get used() {
    return this.#entries.size > 0;
  }

  /** The entry of an item, made at the end of the list when it is new. `role`: user, assistant or note. */
  entry(id, role) {
    let entry = this.#entries.get(id);
    if (!entry) {
      entry = document.createElement("article");
      entry.className = role;
      entry.append(document.createElement("p"), document.createElement("small"));
      entry.setAttribute("aria-label", role === "user" ? "You" : "Answer");
      this.#keepingTheEndInSight(() => this.#list.append(entry));
      this.#entries.set(id, entry);
    }
    return entry;
  }

  append(id, role, text) {
    const [words] = this.entry(id, role).children;
    this.#keepingTheEndInSight(() => words.append(text));
  }

  replace(id, role, text) {
    const [words] = this.entry(id, role).children;
    this.#keepingTheEndInSight(() => (words.textContent = text));
  }

  /** The small line under an entry. */
  remark(id, text) {
    const entry = this.#entries.get(id);
    if (entry) this.#keepingTheEndInSight(() => (entry.children[1].textContent = text));
  }

  /** A line between entries. */
  note(text) {
    const note = document.createElement("p");
    note.className = "note";
    note.textContent = text;
    this.#keepingTheEndInSight(() => this.#list.append(note));
  }

  clear() {
    this.#entries.clear();
    this.#list.replaceChildren();
  }

  /** Scrolls with what is new, unless the reader has scrolled back. */
  #keepingTheEndInSight(change) {
    const list = this.#list;
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    change();
    if (atEnd) list.scrollTop = list.scrollHeight;
  }
}
