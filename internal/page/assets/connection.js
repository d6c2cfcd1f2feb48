// The stream of frames. It opens itself again, for ever, and says truly since
// when nothing has come: a wall that shows old figures as if they were of now
// is worse than a dark one.

const silence = 5000; // ms without a frame: frames come each second
const pauses = [1000, 2000, 5000]; // before the next attempt

export class Connection {
  // on has frame(frame), history(points), live() and lost(since, ended).
  constructor(url, on) {
    this.url = url;
    this.on = on;
    this.last = new Date(); // when the last frame came
    this.state = "connecting";
    this.ended = false; // weir said that it stops
    this.failures = 0;
    this.open();
    setInterval(() => this.watch(), 1000);
  }

  open() {
    clearTimeout(this.timer);
    this.timer = undefined;
    const source = new EventSource(this.url);
    this.source = source;
    this.opened = Date.now();
    source.addEventListener("history", (e) => this.on.history(JSON.parse(e.data)));
    source.addEventListener("frame", (e) => {
      this.last = new Date();
      this.failures = 0;
      this.ended = false;
      if (this.state !== "live") {
        this.state = "live";
        this.on.live();
      }
      this.on.frame(JSON.parse(e.data));
    });
    source.addEventListener("end", () => {
      this.ended = true;
      this.again();
    });
    source.addEventListener("error", () => this.again());
  }

  // again closes the stream and opens another after a pause. EventSource gives
  // up for good after an answer such as 503, so it is not left to it.
  again() {
    this.source.close();
    this.lose();
    if (this.timer === undefined) {
      this.timer = setTimeout(() => this.open(), pauses[Math.min(this.failures++, pauses.length - 1)]);
    }
  }

  watch() {
    if (Date.now() - this.last.getTime() > silence) {
      this.lose();
      if (this.timer === undefined && Date.now() - this.opened > 2 * silence) this.again();
    }
  }

  lose() {
    this.state = "lost";
    this.on.lost(this.last, this.ended);
  }
}
