{application, greeter,
 [{vsn, "1.0.0"}, {description, ""}, {registered, []}, {modules, [greeter, greeter@@main]},
  {applications, [kernel, stdlib]}]}.
