import React from "react";

/** Shows it. */
export const View: React.FC<{ größe: number }> = ({ größe }) => {
  const [state, setState] = React.useState<number>(größe);
  return <div onClick={() => setState(state + 1)}>{render(state)}</div>;
};

export class Panel extends React.Component<Props> {
  render() {
    return <View größe={1} />;
  }
}
