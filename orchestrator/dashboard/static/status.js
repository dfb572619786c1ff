// Keeps the page current: what the server renders is fetched anew and put in the place of the old, on events of the
// plan where there is one, and every few seconds anyway.
const part = document.querySelector("[data-refresh]");

if (part) {
  const least = 500;
  let last = 0;
  let waiting = null;

  async function refresh() {
    waiting = null;
    last = Date.now();
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (answer.redirected) {
      location.assign(answer.url);
      return;
    }
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.querySelector("[data-refresh]");
    if (fresh) part.replaceChildren(...fresh.childNodes);
  }

  function soon() {
    if (waiting === null) {
      waiting = setTimeout(() => refresh().catch(() => {}), Math.max(0, last + least - Date.now()));
    }
  }

  if (part.dataset.follow) {
    const events = new EventSource(part.dataset.follow);
    events.onmessage = soon;
    events.addEventListener("end", () => {
      events.close();
      soon();
    });
  }
  setInterval(() => document.hidden || soon(), Number(part.dataset.refresh) * 1000);
}
