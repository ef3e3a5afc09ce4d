// Where frames come from: a picture, a video file, a camera. Each gives its newest frame as an ImageBitmap.

// Colours and transparency are taken as they are stored, as OpenCV takes them.
const AS_STORED = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };

export class Picture {
  moving = false;
  #bitmap;

  static async open(file) {
    const picture = new Picture();
    try {
      picture.#bitmap = await createImageBitmap(file, AS_STORED);
    } catch {
      throw new Error(`${file.name} is no picture that this browser can read`);
    }
    return picture;
  }

  frame() {
    return createImageBitmap(this.#bitmap);
  }

  current() {
    return this.frame();
  }

  close() {
    this.#bitmap.close();
  }
}

class Moving {
  moving = true;
  skipped = 0;
  onend = () => {};
  #shown = 0; // frames that the browser has shown
  #given = 0; // the number of the one that was given last
  #closed = false;
  #wake = () => {};

  constructor() {
    this.video = document.createElement("video");
    Object.assign(this.video, { muted: true, playsInline: true });
    this.#watch();
  }

  #watch() {
    const next = (count) => {
      this.#shown = count;
      this.#wake(true);
      this.#watch();
    };
    if (this.video.requestVideoFrameCallback) {
      this.video.requestVideoFrameCallback((_, { presentedFrames }) => next(presentedFrames));
    } else if (!this.#closed) requestAnimationFrame(() => next(this.#shown + !this.video.paused));
  }

  get paused() {
    return this.video.paused;
  }

  /** Return the newest frame, or wait for one that was not given yet; null once the source is closed. */
  async frame() {
    while (this.#shown === this.#given) {
      const more = await new Promise((resolve) => {
        this.#wake = resolve;
      });
      if (!more) return null;
    }
    if (this.#given) this.skipped += Math.max(this.#shown - this.#given - 1, 0);
    this.#given = this.#shown;
    return createImageBitmap(this.video);
  }

  /** Return the frame that is shown, again. */
  current() {
    return createImageBitmap(this.video);
  }

  pause() {
    this.video.pause();
  }

  play() {
    return this.video.play();
  }

  close() {
    this.#closed = true;
    this.#wake(false);
    this.video.pause();
  }
}

export class Film extends Moving {
  #url;

  static async open(file, playAtOnce) {
    const film = new Film();
    film.#url = URL.createObjectURL(file);
    film.video.loop = true;
    film.video.src = film.#url;
    await new Promise((resolve, reject) => {
      film.video.onloadeddata = resolve;
      film.video.onerror = () => reject(new Error(`${file.name} is no video that this browser can play`));
    }).catch((error) => {
      film.close();
      throw error;
    });
    if (playAtOnce) await film.play();
    else film.video.currentTime = 0; // presents the first frame
    return film;
  }

  close() {
    super.close();
    this.video.removeAttribute("src");
    URL.revokeObjectURL(this.#url);
  }
}

const CAMERA_FAULTS = {
  NotAllowedError: "The camera is not allowed on this page; allow it beside the address and start it again",
  NotFoundError: "No camera was found; connect one, or choose a picture or video",
  NotReadableError: "The camera is used by another program; close that one and start it again",
};

export class Camera extends Moving {
  #stream;

  static async open(deviceId) {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give a camera only to pages from this machine or from https; open the page that way");
    }
    const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "environment" };
    const size = { width: { ideal: 1280 }, height: { ideal: 720 } };
    const camera = new Camera();
    try {
      camera.#stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, ...size }, audio: false });
    } catch (error) {
      throw new Error(CAMERA_FAULTS[error.name] ?? `The camera did not start (${error.message})`);
    }
    const [track] = camera.#stream.getVideoTracks();
    camera.deviceId = track.getSettings().deviceId;
    track.onended = () => camera.onend();
    camera.video.srcObject = camera.#stream;
    await camera.play();
    return camera;
  }

  close() {
    super.close();
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    this.video.srcObject = null;
  }
}

/** Return the cameras as { id, label }; browsers tell their names once one was allowed. */
export async function cameras() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices
    .filter((device) => device.kind === "videoinput" && device.deviceId)
    .map((device, i) => ({ id: device.deviceId, label: device.label || `Camera ${i + 1}` }));
}
