// The camera, and words for why it cannot be had.

export class Camera {
  constructor(video) {
    this.video = video;
    this.facing = "environment"; // the one at the back of a phone
  }

  get running() {
    return Boolean(this.video.srcObject);
  }

  /** Starts it. Throws an Error whose message is the key of a sentence in words.js. */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error(isSecureContext ? "cameraMissing" : "cameraInsecure");
    }
    try {
      this.video.srcObject = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: this.facing, width: { ideal: 640 }, height: { ideal: 480 } },
      });
      await this.video.play();
    } catch (error) {
      this.stop();
      const known = { NotAllowedError: "cameraRefused", NotFoundError: "cameraMissing" };
      throw new Error(known[error.name] ?? "cameraBusy");
    }
  }

  stop() {
    for (const track of this.video.srcObject?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }

  /** The other one, where there are two. */
  async turn() {
    this.facing = this.facing === "environment" ? "user" : "environment";
    this.stop();
    await this.start();
  }

  static async several() {
    const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
    return devices.filter(({ kind }) => kind === "videoinput").length > 1;
  }
}
