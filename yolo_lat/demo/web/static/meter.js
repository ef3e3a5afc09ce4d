// How fast it goes: frames a second, and the mean milliseconds of each stage, over the last frames.

const FRAMES = 30;

export class Meter {
  #ends = [];
  #times = [];

  reset() {
    this.#ends = [];
    this.#times = [];
  }

  /** Count a frame that is done; times: milliseconds by stage. */
  add(times) {
    this.#ends.push(performance.now());
    this.#times.push(times);
    if (this.#times.length > FRAMES) {
      this.#ends.shift();
      this.#times.shift();
    }
  }

  /** Frames a second, null before the second frame. */
  get fps() {
    const count = this.#ends.length - 1;
    return count > 0 ? (1000 * count) / (this.#ends[count] - this.#ends[0]) : null;
  }

  /** Mean milliseconds by stage, null before the first frame. */
  get means() {
    if (!this.#times.length) return null;
    const sums = {};
    for (const times of this.#times) {
      for (const [stage, time] of Object.entries(times)) sums[stage] = (sums[stage] ?? 0) + time;
    }
    return Object.fromEntries(Object.entries(sums).map(([stage, sum]) => [stage, sum / this.#times.length]));
  }
}
