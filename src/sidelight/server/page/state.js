// What the parts of the page share.

export const state = {
  about: null, // what GET v1/models says
  video: null, // the video in the player
  choosing: null, // ends once the chosen video is in the player
  result: null, // the last search of all videos
};

// Functions of one part that others call; app.js sets them.
export const actions = {};
