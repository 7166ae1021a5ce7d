// Runs the worker of the site's search in a hidden frame when a page is opened from disk, where browsers refuse workers.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(url) {
      this.waiting = []; // messages that are not delivered yet
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.frame.reply = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      this.frame.started = () => { this.ready = true; this.deliver(); };
      this.scope = this.frame.contentWindow;
      this.scope.document.open();
      this.scope.document.write(
        "<script>postMessage = (data) => frameElement.reply(data)</script>" +
        `<script src="${new URL(url, document.baseURI)}" onload="frameElement.started()"></script>`
      );
      this.scope.document.close();
    }

    postMessage(data) {
      // The search runs in the page's own thread: while someone types, only the newest question is worth an answer.
      this.waiting = [...this.waiting.filter((message) => message.type !== data.type), data];
      this.deliver();
    }

    deliver() {
      if (!this.ready) return;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => {
        for (const data of this.waiting.splice(0)) this.scope.onmessage({ data: this.scope.structuredClone(data) });
      }, 200);
    }

    terminate() {
      clearTimeout(this.timer);
      this.frame.remove();
    }
  };
}
