// The camera, and words for why it cannot be had.

export class Camera {
  constructor(video) {
    this.video = video;
    this.facing = "environment"; // the one at the back of a phone
    this.round = 0; // goes up with every start and stop, so that a late stream is known as such
  }

  get running() {
    return Boolean(this.video.srcObject);
  }

  /**
   * Starts it; false if it was stopped or started anew while the browser was asking, or nobody
   * looks any more. Throws an Error whose message is the key of a sentence in words.js.
   */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error(isSecureContext ? "cameraMissing" : "cameraInsecure");
    }
    const round = ++this.round;
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: this.facing, width: { ideal: 640 }, height: { ideal: 480 } },
      });
      if (round !== this.round || document.hidden) {
        end(stream);
        return false;
      }
      this.video.srcObject = stream;
      await this.video.play();
      return round === this.round;
    } catch (error) {
      if (round !== this.round) return false;
      this.stop();
      const known = { NotAllowedError: "cameraRefused", NotFoundError: "cameraMissing" };
      throw new Error(known[error.name] ?? "cameraBusy");
    }
  }

  stop() {
    this.round++;
    end(this.video.srcObject);
    this.video.srcObject = null;
  }

  /** The other one, where there are two; as `start`. */
  async turn() {
    this.facing = this.facing === "environment" ? "user" : "environment";
    this.stop();
    return this.start();
  }

  static async several() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }
}

function end(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}
